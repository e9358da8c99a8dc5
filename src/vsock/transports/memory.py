"""The transport `memory`: machines that exist in this process alone, for tests of programs that use sockets.

There is no switch, no directory and no thread. A listener and a connection are real descriptors, as
everywhere: a connection is a pair of Unix sockets, and a listener is one end of such a pair, on the
other end of which `connect` hands connections over as a node does. So both work in every event
loop.
"""

import errno
import itertools
import threading
from socket import (
    AF_UNIX,
    SO_SNDBUF,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    send_fds,
    socketpair,
)
from typing import Final

from vsock._client import MESSAGE_SIZE, Op, Reply, Request, checked, unknown_guest
from vsock._socket import socket
from vsock._socket.options import DEFAULT_BUFFER
from vsock._socket.stream import LONGEST_MESSAGE, StreamSocket
from vsock._socket.transport import ConnectOptions, ListenOptions, only_verbs
from vsock._system.green import Base, plain_poll
from vsock._system.waiting import Steps
from vsock.address import (
    CID_ANY,
    CID_HOST,
    CID_LOCAL,
    PORT_ANY,
    Address,
    NamedAddress,
    Target,
    as_target,
    is_name,
)
from vsock.errors import UsageError, state_error, transport_error

_FIRST_PORT: Final = 1024
_LONGEST_BACKLOG: Final = 63
"""The acknowledgements of more connections might not fit the Unix socket on which a listener sends them; we
read them at the next connect."""
_LISTENER_BUFFER: Final = 1 << 18


class MemoryTransport:
    """One machine of a network that exists in this process alone; pass it as ``transport=``.

    Programs on it connect to others on the network by CID or name, and are refused as over a
    switch: NoSuchGuest, ConnectRefused. Unlike there, every guest may connect to every other, every
    port may be bound, at most 64 connections wait at a listener, and there are no datagrams.
    `vsock.socket` makes no sockets here; `create_connection`, `create_server`, `open_connection`
    and `start_server` do.

    Args:
        cid: its CID; by default it is the host.
    """

    node = None

    def __init__(self, cid: int = CID_HOST) -> None:
        """Make a network with this machine in it; the arguments are the class's."""
        self._network = _Network()
        self._machine = self._network.add(cid, "")

    def guest(self, name: str, cid: int) -> "MemoryTransport":
        """Return another machine of the same network.

        Args:
            name: what it is called in addresses.
            cid: its CID.

        Raises:
            UsageError: this is no name or CID of a guest, or another machine has it.
        """
        if not is_name(name):
            raise UsageError(f"{name!r} is no name of a guest")
        made = MemoryTransport.__new__(MemoryTransport)
        made._network, made._machine = self._network, self._network.add(cid, name)
        return made

    def socket_class(self, kind: int, proto: int) -> type[socket]:
        """See `Transport`."""
        raise only_verbs("memory")

    def connect(self, address: Target, options: ConnectOptions) -> Steps[socket]:
        """See `Transport`: the outcome is known at once."""
        yield from ()
        _check_type(options.type)
        target = checked(address)
        with self._network.lock:
            to = self._network.resolved(target)
            ours = self._source(options)
            listener = self._network.listener(self._machine, to)
            if listener is None or listener.kind != options.type:
                raise transport_error(errno.ECONNRESET, f"connect to {to}")
            our_end, their_end = _pair(options.type)
            with their_end:
                is_local = to.cid in (CID_LOCAL, self._machine.cid)
                cid = CID_LOCAL if is_local else self._machine.cid
                if not listener.offer(their_end, to, Address(cid, ours.port)):
                    our_end.close()
                    raise transport_error(errno.ECONNRESET, f"connect to {to}")
        made = StreamSocket.of_connection(
            our_end.detach(), options.type, ours=ours, theirs=to, peer_buffer=DEFAULT_BUFFER
        )
        made.setblocking(False)
        return made

    def listen(self, address: Target, options: ListenOptions) -> socket:
        """See `Transport`: these listeners do not end with a switch."""
        _check_type(options.type)
        target = checked(address)
        with self._network.lock:
            ours = self._machine.bound(self._network.resolved(target))
            listener = _Listener(ours, options.type, options.backlog)
            self._machine.listeners[ours.port] = listener
        return listener.socket()

    def local_cid(self) -> int:
        """Return the CID of this machine."""
        return self._machine.cid

    def _source(self, options: ConnectOptions) -> Address:
        """Return our address on a new connection."""
        wanted = Address(CID_ANY, PORT_ANY)
        if options.source_address is not None:
            wanted = self._network.resolved(checked(as_target(options.source_address)))
        return self._machine.bound(wanted)


class _Network:
    """All machines, by CID and by name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._machines: dict[int, _Machine] = {}

    def add(self, cid: int, name: str) -> "_Machine":
        """Add a machine."""
        with self.lock:
            if not CID_HOST <= cid < CID_ANY or cid in self._machines:
                raise UsageError(f"{cid} is no CID of a machine, or another one has it")
            if name and any(machine.name == name for machine in self._machines.values()):
                raise UsageError(f"another guest is called {name!r}")
            made = self._machines[cid] = _Machine(cid, name)
            return made

    def resolved(self, target: Address | NamedAddress) -> Address:
        """Return the CID and port that `target` means."""
        if isinstance(target, Address):
            return target
        for machine in self._machines.values():
            if machine.name == target.name:
                return Address(machine.cid, target.port)
        raise unknown_guest(target)

    def listener(self, source: "_Machine", to: Address) -> "_Listener | None":
        """Return who listens at `to`, as seen from `source`; NoSuchGuest if there is no such machine."""
        machine = source if to.cid == CID_LOCAL else self._machines.get(to.cid)
        if machine is None:
            raise transport_error(errno.ENODEV, f"connect to {to}")
        found = machine.listeners.get(to.port)
        return found if found is not None and found.ours.cid in (CID_ANY, to.cid) else None


class _Machine:
    """One machine: its listeners, by port."""

    def __init__(self, cid: int, name: str) -> None:
        self.cid = cid
        self.name = name
        self.listeners: dict[int, _Listener] = {}
        self._ports = itertools.count(_FIRST_PORT)

    def bound(self, wanted: Address) -> Address:
        """Return the address that a socket gets which binds to `wanted`; EADDRNOTAVAIL, EADDRINUSE."""
        if wanted.cid not in (CID_ANY, CID_LOCAL, self.cid):
            raise OSError(errno.EADDRNOTAVAIL, f"bind {wanted}: this machine has CID {self.cid}")
        for port in [port for port, listener in self.listeners.items() if listener.is_closed()]:
            del self.listeners[port]
        if wanted.port == PORT_ANY:
            return Address(wanted.cid, next(it for it in self._ports if it not in self.listeners))
        if wanted.port in self.listeners:
            raise OSError(errno.EADDRINUSE, f"bind {wanted}: a listener has this port")
        return wanted


class _Listener:
    """The network's end of a listener."""

    def __init__(self, ours: Address, kind: int, backlog: int) -> None:
        self.ours = ours
        self.kind = kind
        self._backlog = min(max(backlog, 0), _LONGEST_BACKLOG)
        self._end, self._programs_end = socketpair(AF_UNIX, kind)
        for end in (self._end, self._programs_end):
            end.setsockopt(SOL_SOCKET, SO_SNDBUF, _LISTENER_BUFFER)
        self._end.setblocking(False)
        self._received = b""
        self._inherited = b""
        self._waiting = 0

    def __del__(self) -> None:
        """Close our end: the network, or the last machine that knew of it, is gone."""
        self._end.close()

    def socket(self) -> socket:
        """Return the program's end, once."""
        fd = self._programs_end.detach()
        return StreamSocket.of_listener(fd, self.kind, ours=self.ours, backlog=self._backlog)

    def is_closed(self) -> bool:
        """Tell whether the program has closed its end."""
        poller = plain_poll()
        poller.register(self._end, 0)
        return bool(poller.poll(0))

    def offer(self, end: Base, to: Address, theirs: Address) -> bool:
        """Put the other end of a connection into the queue; False if that is full, or nobody listens any more."""
        self._read_requests()
        if self._waiting > self._backlog:
            return False
        reply = Reply(Op.ACCEPT, 0, *to, *theirs, DEFAULT_BUFFER)
        try:
            send_fds(self._end, [reply.encode() + self._inherited], [end.fileno()])
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            return False
        self._waiting += 1
        return True

    def _read_requests(self) -> None:
        """Take in what the program has said: which connections it took, and changes of its options."""
        try:
            while piece := self._end.recv(4096):
                self._received += piece
        except (BlockingIOError, ConnectionResetError):
            pass
        while len(self._received) >= MESSAGE_SIZE:
            request = Request.decode(self._received[:MESSAGE_SIZE])
            end = MESSAGE_SIZE + request.extra
            if request.op == Op.ACCEPTED:
                self._waiting -= 1
            else:  # LISTEN, which is sent whole
                self._backlog = min(request.value, _LONGEST_BACKLOG)
                self._inherited = self._received[MESSAGE_SIZE:end]
            self._received = self._received[end:]


def _check_type(kind: int) -> None:
    if kind not in (SOCK_STREAM, SOCK_SEQPACKET):
        raise state_error(errno.ESOCKTNOSUPPORT)


def _pair(kind: int) -> tuple[Base, Base]:
    """Return both ends of a connection."""
    ends = socketpair(AF_UNIX, kind)
    if kind == SOCK_SEQPACKET:
        for end in ends:
            # A message must fit the send buffer as a whole.
            end.setsockopt(SOL_SOCKET, SO_SNDBUF, LONGEST_MESSAGE)
    return ends

"""`StreamSocket`: SOCK_STREAM and SOCK_SEQPACKET at a node, around a real file descriptor.

The descriptor is a Unix socket to the node that becomes the connection itself once CONNECT has succeeded. So it works
with select, asyncio, ssl, subprocess, sendfile and everything else that takes a socket, and Python is never on the byte
path. This module adds the order in which vsock(7) and the kernel let things happen::

    FRESH ──bind──▶ BOUND ──listen──▶ LISTENING
      └───connect─────┴──▶ CONNECTING ──outcome──▶ CONNECTED ──shutdown──▶ SHUT_DOWN

A refused or timed out connect leads back to FRESH or BOUND.

The kernel does nearly all of a data call. What differs from AF_VSOCK is put right before and after
it, in the order in which the kernel checks (kernel-semantics, 6 and 7): flags that AF_VSOCK refuses
or ignores, errors before there is a connection, a receive after ``shutdown(SHUT_RD)``, and what
concerns messages (`vsock._socket.messages`).

``family`` is AF_UNIX and not AF_VSOCK: ssl, uvloop and others choose by it which system calls to
make on the descriptor, and those must fit what it is.
"""

import contextlib
import errno
import time
from collections.abc import Iterable
from socket import (
    AF_UNIX,
    MSG_OOB,
    MSG_WAITALL,
    SHUT_RD,
    SHUT_RDWR,
    SHUT_WR,
    SO_SNDBUF,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    SOL_SOCKET,
    getdefaulttimeout,
)
from socket import dup as dup_descriptor
from typing import Any, Final, Self

from vsock import _client
from vsock._client import Node, Op, Reply, Request, checked, cookie
from vsock._socket import a_kind, messages, metadata, passing, send_buffer, socket, socket_options
from vsock._socket.accept_queue import receive_accepted
from vsock._socket.arguments import arguments_first, check, check_sendto
from vsock._socket.metadata import ATTACHED, MESSAGES, STREAM, Metadata, State
from vsock._socket.options import VsockOptions, checked_timeout
from vsock._socket.state import SocketState
from vsock._system.green import Base, adapted
from vsock._system.waiting import Steps, run
from vsock.address import CID_ANY, CID_LOCAL, PORT_ANY, Address, NamedAddress, Target, as_target
from vsock.errors import UsageError, state_error, transport_error

_LONGEST_BACKLOG: Final = 4096
LONGEST_MESSAGE: Final = 1 << 24
"""Send buffer asked for on message sockets; the kernel gives what its settings allow."""
_MSG_ERRQUEUE: Final = 0x2000
_UNUSUAL: Final = MSG_OOB | _MSG_ERRQUEUE


@a_kind
class StreamSocket(socket):
    """A socket for connections; `socket` documents the calls."""

    __slots__ = ()
    _state: SocketState

    # How it is made

    def _open(self, kind: int, proto: int, node: Node | None) -> None:
        Base.__init__(self, AF_UNIX, kind)
        self._state = SocketState(Metadata(), node)
        kept = self._state.metadata
        if self.type == SOCK_SEQPACKET:
            # A message must fit the send buffer as a whole.
            Base.setsockopt(self, SOL_SOCKET, SO_SNDBUF, LONGEST_MESSAGE)
            kept = kept.plus(MESSAGES)
        self._state.store(self, kept)

    @classmethod
    def _adopt(cls, fd: int, kind: int, state: SocketState) -> Self:
        """Make a socket of the descriptor `fd`, which the socket then owns.

        Whether it blocks is left as it is, since others may hold it too.
        """
        made = Base.__new__(adapted(cls))
        Base.__init__(made, AF_UNIX, kind, fileno=fd)
        made._state = state
        return made

    @classmethod
    def _from_fd(cls, fd: int, node: Node | None) -> Self:
        probe = Base(fileno=fd)
        try:
            kind = probe.type
            state = SocketState.of_socket(probe, node) if probe.family == AF_UNIX else None
        finally:
            probe.detach()
        if state is None:
            raise UsageError(f"descriptor {fd} is no VSOCK socket of a switch")
        return cls._adopt(fd, kind, state)

    @classmethod
    def of_connection(
        cls,
        fd: int,
        kind: int,
        *,
        ours: Address,
        theirs: Address,
        peer_buffer: int = 0,
        options: VsockOptions | None = None,
        node: Node | None = None,
    ) -> Self:
        """Make a socket of a connection that was made in another way than by its `connect`.

        Args:
            fd: the connection: a Unix socket without metadata, which the socket then owns.
            kind: its type.
            ours: our address.
            theirs: the other side's.
            peer_buffer: the other side's receive buffer in bytes (0: not known).
            options: those of level AF_VSOCK, if they are not the defaults.
            node: where the connection lives; None for one that needs no node.
        """
        flags = STREAM | (MESSAGES if kind == SOCK_SEQPACKET else 0)
        code = max(0, peer_buffer.bit_length() - 1)
        state = SocketState(Metadata(State.CONNECTED, flags, code, theirs.cid), node)
        made = cls._adopt(fd, kind, state)
        # The sender's O_NONBLOCK came along with the descriptor; ours is what Python's default says.
        made.settimeout(getdefaulttimeout())
        state.ours, state.theirs, state.peer_buffer = ours, theirs, peer_buffer
        state.options = options or state.options
        if ours.port != PORT_ANY:
            metadata.give_name(made, ours)
        metadata.write_port(made, theirs.port)
        state.store_options(made)
        return made

    @classmethod
    def of_listener(cls, fd: int, kind: int, *, ours: Address, backlog: int) -> Self:
        """Make a listener of a descriptor on which ACCEPTs will come, and that needs no node.

        Args:
            fd: a Unix socket without metadata, which the socket then owns.
            kind: its type.
            ours: the address that it listens at.
            backlog: as for `listen`.
        """
        kept = Metadata(State.LISTENING, MESSAGES if kind == SOCK_SEQPACKET else 0, number=backlog)
        made = cls._adopt(fd, kind, SocketState(kept))
        metadata.give_name(made, ours)
        made._state.ours = ours
        made._state.store(made, kept)
        return made

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Go to another process, if it is `multiprocessing` that takes it there; TypeError otherwise."""
        if passing.is_passed_on():
            return passing.reduce(self, self._state.node)
        return super().__reduce_ex__(protocol)

    def dup(self) -> "StreamSocket":
        twin = StreamSocket._adopt(dup_descriptor(self.fileno()), self.type, self._state)
        twin.settimeout(self.gettimeout())
        return twin

    def detach(self) -> int:
        """Give up the descriptor without closing it, and return it."""
        if self._state.state is State.CONNECTING:
            # A connection that has come has its send buffer again.
            self._state.update(self)
        return super().detach()

    # Its life

    @property
    def connect_timeout(self) -> float:
        return self._state.options.connect_timeout

    @connect_timeout.setter
    def connect_timeout(self, seconds: float) -> None:
        self._state.options.connect_timeout = checked_timeout(seconds)
        self._state.load(self)
        socket_options.keep_options(self, self._state, is_other_size=False)

    def bind(self, address: Any) -> None:
        target = checked(as_target(address))
        state = self._updated()
        if state.state is not State.FRESH:
            raise state_error(errno.EINVAL)
        wanted = self._resolved(target)
        reply = self._ask(Request(Op.BIND, wanted.cid, wanted.port), f"bind {wanted}")
        state.take_name(self, reply)
        state.store(self, state.metadata._replace(state=State.BOUND))

    def listen(self, backlog: int = 128, /) -> None:
        check(Base.listen, backlog)
        backlog = min(max(backlog, 0), _LONGEST_BACKLOG)
        state = self._updated()
        if state.state not in (State.LISTENING, State.BOUND):
            raise state_error(errno.EINVAL)
        state.store(self, state.metadata._replace(number=backlog))
        if state.state is State.LISTENING:
            socket_options.announce(self, state)
            return
        request, extra = socket_options.listen_request(state), state.options.encode()
        self._ask(request, f"listen on {state.ours}", extra)
        state.store(self, state.metadata._replace(state=State.LISTENING))

    def accept(self) -> "tuple[socket, Address]":
        self._require_open()
        state = self._state
        if state.state is not State.LISTENING and state.load(self).state is not State.LISTENING:
            raise state_error(errno.EINVAL)
        reply, inherited, fd = receive_accepted(self)
        theirs = Address(reply.their_cid, reply.their_port)
        accepted = StreamSocket.of_connection(
            fd,
            self.type,
            ours=Address(reply.our_cid, reply.our_port),
            theirs=theirs,
            peer_buffer=reply.peer_buf_alloc,
            options=VsockOptions.decode(inherited),
            node=state.node,
        )
        return accepted, theirs

    def connect(self, address: Any) -> None:
        target = as_target(address)
        state = self._updated()
        if state.state is State.CONNECTED:
            raise state_error(errno.EISCONN)
        if state.state in (State.LISTENING, State.SHUT_DOWN):
            raise state_error(errno.EINVAL)
        if state.metadata.error == errno.ETIMEDOUT:
            # A new attempt begins, whether anybody has asked about the last one or not.
            state.clear_error(self)
        state.raise_error(self)
        timeout = self.gettimeout()
        if state.state is not State.CONNECTING:
            self._begin_connect(target, is_prompt=timeout == 0)
        elif timeout == 0:
            raise state_error(errno.EALREADY)
        if timeout == 0:
            raise state_error(errno.EINPROGRESS)
        allowed = self.connect_timeout + _client.ANSWER_TIMEOUT
        is_shorter = timeout is not None and timeout < allowed
        run(
            self._end_connect(
                timeout if timeout is not None and is_shorter else allowed, is_shorter
            )
        )

    def _connecting(self, address: Target, timeout: float | None) -> Steps[None]:
        if timeout is not None:
            self.connect_timeout = timeout
        yield from self._attaching()
        self._begin_connect(address, is_prompt=False)
        yield from self._end_connect(self.connect_timeout + _client.ANSWER_TIMEOUT)

    def _begin_connect(self, target: Target, *, is_prompt: bool) -> None:
        """Ask the node for a connection to `target`."""
        theirs = checked(target)
        if self._state.wants_zerocopy:
            raise state_error(errno.EOPNOTSUPP)
        self._attach()
        self._state.begin_connect(self, theirs, is_prompt=is_prompt)

    def _end_connect(self, seconds: float, goes_on: bool = False) -> Steps[None]:
        """Wait for the outcome of a connect, and raise it if there is no connection.

        Args:
            seconds: how long.
            goes_on: after that the attempt goes on, and only our user's patience is at its end.
        """
        yield from self._state.finish_connect(self, time.monotonic() + seconds)
        if self._state.load(self).has_stream:
            return
        self._state.raise_error(self)
        if goes_on:
            raise TimeoutError("timed out")
        self._state.abandon(self)
        raise transport_error(errno.ETIMEDOUT, f"connect to {self._state.theirs}")

    def finish_connect(self) -> None:
        self._state.update(self)
        self._state.raise_error(self)
        if self._state.state is not State.CONNECTED:
            raise state_error(errno.EALREADY)

    def getsockname(self) -> Address:
        state = self._updated()
        if state.ours.port == PORT_ANY:
            state.find_name(self)
        # A connection that was made here and leads back here has become one of CID 1, whatever it was bound to.
        is_bound_to_one = state.is_attached and state.ours.cid != CID_ANY
        is_to_ourselves = state.metadata.number in (CID_LOCAL, state.ours.cid)
        if is_bound_to_one and state.has_stream and is_to_ourselves:
            return Address(CID_LOCAL, state.ours.port)
        return state.ours

    def getpeername(self) -> Address:
        state = self._updated()
        if state.state is not State.CONNECTED:
            raise state_error(errno.ENOTCONN)
        return Address(state.metadata.number, metadata.read_port(self))

    def shutdown(self, how: int, /) -> None:
        check(Base.shutdown, how)
        self._require_open()
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            raise state_error(errno.EINVAL)
        state = self._updated()
        if state.state is State.CONNECTING:
            Base.shutdown(self, SHUT_RDWR)
            send_buffer.end_hold(self, state.has_low_water)
        elif state.has_stream:
            Base.shutdown(self, how)
            if how == SHUT_RD and state.node is not None:
                # A connection that has ended meanwhile, or a node that has, takes no message about it.
                with contextlib.suppress(OSError):
                    state.node.stop_receiving(cookie(self))
        else:
            raise state_error(errno.ENOTCONN)
        state.store(self, state.metadata.plus(metadata.shut(how))._replace(state=State.SHUT_DOWN))

    # Options

    @arguments_first
    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> Any:
        self._require_open()
        return socket_options.get_option(self, self._state, level, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        check(Base.setsockopt, level, optname, 0)
        if not isinstance(value, int) and not optlen:
            memoryview(value)
        self._require_open()
        socket_options.set_option(self, self._state, level, optname, value, *optlen)

    # Data

    @arguments_first
    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive up to `bufsize` bytes, or one message; empty at the end of the data."""
        if self._is_over(bufsize, flags):
            return b""
        data = super().recv(bufsize, flags)
        if not data:
            self._state.check_end(self)
        return data

    @arguments_first
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into `buffer` (its first `nbytes`, if given) and return how much came."""
        if self._is_over(nbytes or memoryview(buffer).nbytes, flags):
            return 0
        length = super().recv_into(buffer, nbytes, flags)
        if not length:
            self._state.check_end(self)
        return length

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive like `recv`; there is no address with it, as on every connected AF_VSOCK socket."""
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive like `recv_into`; there is no address with it."""
        return self.recv_into(buffer, nbytes, flags), None

    @arguments_first
    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[Any], int, Any]:
        """Receive data and flags: MSG_TRUNC (a message was longer), MSG_EOR (it ends a record)."""
        if ancbufsize:
            check(Base.recvmsg, bufsize, ancbufsize, flags)
        if self._is_over(bufsize, flags):
            return b"", [], 0, None
        data, _, flags, _ = super().recvmsg(bufsize, 0, flags)
        if not data:
            self._state.check_end(self)
        return data, [], messages.received_flags(self, flags), None

    @arguments_first
    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        """Receive like `recvmsg`, into several buffers one after the other."""
        views = [memoryview(buffer) for buffer in buffers]
        if ancbufsize:
            check(Base.recvmsg_into, views, ancbufsize, flags)
        if self._is_over(sum(view.nbytes for view in views), flags):
            return 0, [], 0, None
        length, _, flags, _ = super().recvmsg_into(views, 0, flags)
        if not length:
            self._state.check_end(self)
        return length, [], messages.received_flags(self, flags), None

    @arguments_first
    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send `data`, or as much of it as fits now; a message (SOCK_SEQPACKET) whole.

        Raises:
            OSError: EPIPE (shut down by either side, or the connection is over), EMSGSIZE (longer
                than a receive buffer of either side), ENOTCONN.
        """
        self._may_send(flags)
        if self.type == SOCK_SEQPACKET:
            return messages.send(self, self._state, [data], flags)
        return super().send(data, flags)

    @arguments_first
    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send all of `data`; a message (SOCK_SEQPACKET) is sent as with `send`."""
        self._may_send(flags)
        if self.type == SOCK_SEQPACKET:
            messages.send(self, self._state, [data], flags)
        else:
            super().sendall(data, flags)

    def sendto(self, data: Any, *rest: Any) -> int:
        """Refuse to send to an address: EISCONN if connected, else EOPNOTSUPP."""
        check_sendto(data, rest)
        flags = rest[0] if len(rest) > 1 else 0
        return self.sendmsg([data], (), flags, as_target(rest[-1]))

    @arguments_first
    def sendmsg(
        self,
        buffers: Iterable[Any],
        ancdata: Iterable[tuple[int, int, Any]] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        """Send several buffers as one; ancillary data is ignored, as by every AF_VSOCK socket."""
        if ancdata != ():
            check(Base.sendmsg, [], ancdata, flags)
        if address is not None:
            address = as_target(address)
        self._may_send(flags, address)
        if self.type == SOCK_SEQPACKET:
            return messages.send(self, self._state, list(buffers), flags)
        return super().sendmsg(buffers, (), flags)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file's bytes, as `socket.socket.sendfile` does."""
        self._may_send(0)
        return super().sendfile(file, offset, count)

    def _is_over(self, length: int, flags: int) -> bool:
        """Do the kernel's checks before a receive; true if it gives nothing, at once."""
        state = self._state
        if flags & _UNUSUAL and self.fileno() < 0:
            raise state_error(errno.EBADF)
        if flags & _MSG_ERRQUEUE:
            raise state_error(errno.EAGAIN)
        if not state.has_stream:
            self._require_stream()
        if flags & MSG_OOB:
            raise state_error(errno.EOPNOTSUPP)
        if not state.receives or length == 0:
            return True
        if flags & MSG_WAITALL or state.low_water > 1 or state.options.size <= 1:
            target = length if flags & MSG_WAITALL else min(state.low_water, length)
            if self.type == SOCK_STREAM and target >= state.options.size:
                raise state_error(errno.ENOMEM)
        return False

    def _may_send(self, flags: int, address: Any = None) -> None:
        """Do the kernel's checks before a send."""
        state = self._state
        if (address is not None or flags & MSG_OOB) and self.fileno() < 0:
            raise state_error(errno.EBADF)
        if flags & MSG_OOB:
            raise state_error(errno.EOPNOTSUPP)
        if address is not None:
            raise state_error(errno.EISCONN if state.has_stream else errno.EOPNOTSUPP)
        if not state.sends and not (self.type == SOCK_STREAM and state.has_stream):
            # A stream's descriptor says it by itself, and with a signal, as it should.
            raise state_error(errno.EPIPE)
        if not state.has_stream:
            self._require_stream()

    # What several calls need

    def _require_open(self) -> None:
        if self.fileno() < 0:
            raise state_error(errno.EBADF)

    def _updated(self) -> SocketState:
        """Return what the open socket is now."""
        self._require_open()
        self._state.update(self)
        return self._state

    def _require_stream(self) -> None:
        """Raise ENOTCONN unless there is a connection; one may have come just now."""
        if not self._updated().has_stream:
            raise state_error(errno.ENOTCONN)

    def _node(self) -> Node:
        node = self._state.node
        assert node is not None, "a socket that is no connection and no listener has a node"
        return node

    def _resolved(self, target: Address | NamedAddress) -> Address:
        """Ask the node, over our own descriptor, which CID a name stands for."""
        if isinstance(target, Address):
            return target
        self._attach()
        return _client.resolve(self, target)

    def _attach(self) -> None:
        """Connect the descriptor to the node, if it is not yet."""
        self._require_open()
        if not self._state.is_attached:
            self._node().attach(self, self.type)
            self._state.store(self, self._state.metadata.plus(ATTACHED))

    def _attaching(self) -> Steps[None]:
        """Do what `_attach` does, in steps."""
        if not self._state.is_attached:
            yield from self._node().attaching(self, self.type)
            self._state.store(self, self._state.metadata.plus(ATTACHED))

    def _ask(self, request: Request, doing: str, extra: bytes = b"") -> Reply:
        """Ask the node over the socket's own descriptor; an errno in the answer is raised."""
        self._attach()
        reply = _client.ask(self, request, extra)
        if reply.errno:
            raise transport_error(reply.errno, doing)
        return reply

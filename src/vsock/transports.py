"""Where sockets live: which transport a program means, and how a connection is begun there.

``switch``   (the default) a vsock switch on this machine, found by its runtime directory; a
             userspace guest (`vsock.Guest`) is the same thing with a directory of its own.
``kernel``   the kernel's own AF_VSOCK, for programs inside a guest. Only when asked for by name, in
             an argument, in an address (``kernel:CID:PORT``) or in ``VSOCK_TRANSPORT``: nothing
             here ever falls back to it.
hybrid       Unix sockets of Firecracker, Cloud Hypervisor and our own switch, chosen by an address
             (``hvsock:///path:PORT``, ``unix:/path``), never by name.

This module is not for the sockets themselves: `vsock.sockets` and `vsock.aio` are, and both use
the pure halves of the hybrid handshake below.
"""

import errno
import os
import select
import socket as _socket
import struct
import time
from typing import Final, NamedTuple

from vsock import _endpoint, _unix
from vsock._endpoint import Op, Reply, Request
from vsock._green import Base as _Base
from vsock._green import adapted, is_patched
from vsock._note import cookie
from vsock.address import HybridAddress, UnixAddress
from vsock.errors import (
    AccessDenied,
    NoSwitch,
    ProtocolError,
    SwitchGone,
    UsageError,
    no_switch,
    path_too_long,
    transport_error,
)

LONGEST_HYBRID_ANSWER: Final = 32
"""Bytes in the longest answer line of a hybrid socket that is still believed."""

_KERNEL_INSTEAD: Final = (
    "; VSOCK_TRANSPORT=kernel or --transport kernel choose the kernel's own AF_VSOCK"
)
_DIRECTORIES: Final = {
    _socket.SOCK_STREAM: "stream",
    _socket.SOCK_SEQPACKET: "seqpacket",
    _socket.SOCK_DGRAM: "dgram",
}


class SwitchTransport(NamedTuple):
    """A switch, or a userspace guest, that serves endpoint sockets in `directory`."""

    directory: str

    def attach(self, sock: _Base, kind: int) -> None:
        """Connect `sock`, a new Unix socket, to the endpoint socket for its type.

        Raises:
            NoSwitch: nobody serves this directory; the message names the alternatives.
            AccessDenied: this user may not enter the directory.
        """
        path = f"{self.directory}/{_DIRECTORIES[_socket.SocketKind(kind)]}"
        if len(os.fsencode(path)) > 107:
            raise path_too_long(path)
        try:
            _unix.connect(sock, path, _endpoint.ANSWER_TIMEOUT)
        except PermissionError:
            raise AccessDenied(errno.EACCES, f"{path}: this user may not use the switch") from None
        except BlockingIOError:
            raise SwitchGone(errno.ENODEV, f"{path}: the switch takes no connections") from None
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise no_switch(self.directory, _KERNEL_INSTEAD) from None

    def local_cid(self) -> int:
        """Return the CID of the node that serves the directory."""
        return self._ask(Request(Op.LOCAL_CID), b"", "local CID").our_cid

    def resolve(self, name: str) -> int:
        """Return the CID of the guest called `name`; raise `NoSuchGuest` if there is none."""
        return self._ask(Request(Op.RESOLVE), name.encode(), f"guest {name!r}").their_cid

    def set_buffer(self, cookie: int, size: int) -> int:
        """Give the connection of the socket with this cookie another receive buffer (0: none); return the peer's."""
        return self._ask(
            _about(cookie, buffer=size), b"", "asking about a connection"
        ).peer_buf_alloc

    def our_port(self, cookie: int) -> int:
        """Return the port that a connection of ours has, also if it is over; PORT_ANY if it is not known any more."""
        return self._reply(_about(cookie)).our_port

    def has_ended_well(self, sock: _Base) -> bool:
        """Tell whether a connection that is over came to a good end.

        A node that has forgotten it, among thousands that ended later, did not lose it; one that has
        gone did, and another that serves in its place knows nothing of it. Where this process cannot ask (it
        has no descriptor left, or may not enter the runtime directory any more), a node that is alive counts
        as one that did not lose it.
        """
        try:
            with _Base(_socket.AF_UNIX, _socket.SOCK_STREAM) as aside:
                self.attach(aside, _socket.SOCK_STREAM)
                is_same = _node_pid(aside) == _node_pid(sock)
                code = _endpoint.ask(aside, _about(cookie(sock))).errno
        except (NoSwitch, SwitchGone):
            return False
        except OSError:
            return _is_alive(_node_pid(sock))
        return is_same if code == errno.ENOTCONN else code != errno.ECONNRESET

    def stop_receiving(self, cookie: int) -> None:
        """Say that a connection of ours receives no more.

        Its descriptor has been shut down, but while that is full, or carries messages, the switch
        would not see it before it has something to write.
        """
        self._ask(_about(cookie, value=_endpoint.REFUSES), b"", "asking about a connection")

    def _ask(self, request: Request, extra: bytes, doing: str) -> Reply:
        """Ask one thing; an errno in the answer is raised."""
        reply = self._reply(request, extra)
        if reply.errno:
            raise transport_error(reply.errno, doing)
        return reply

    def _reply(self, request: Request, extra: bytes = b"") -> Reply:
        """Ask one thing over a connection of its own."""
        with _Base(_socket.AF_UNIX, _socket.SOCK_STREAM) as sock:
            self.attach(sock, _socket.SOCK_STREAM)
            return _endpoint.ask(sock, request, extra)


def _about(cookie: int, *, value: int = 0, buffer: int = 0) -> Request:
    return Request(Op.FLOW, cookie & 0xFFFFFFFF, cookie >> 32, value, buffer)


def _is_alive(pid: int) -> bool:
    """Tell whether there is a process of this number; one that may not be signalled is one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _node_pid(sock: _Base) -> int:
    """Return the process at the other end of `sock`: the one that listened, or made the pair."""
    peer = _Base.getsockopt(sock, _socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    pid: int = struct.unpack("@iII", peer)[0]
    return pid


class KernelTransport:
    """The kernel's own AF_VSOCK."""

    __slots__ = ()

    def make(self, kind: int, proto: int = 0) -> _Base:
        """Return a new kernel socket.

        Raises:
            UsageError: gevent or eventlet has patched this program: such a socket would stop all greenlets.
        """
        _refuse_green()
        # Late, because few ask for it, and ctypes costs more to import than all the rest.
        from vsock._kernel_socket import KernelSocket

        return KernelSocket(kind, proto)

    def from_fd(self, fd: int) -> _Base:
        """Return the kernel socket that `fd` is; see `make`."""
        _refuse_green()
        from vsock._kernel_socket import KernelSocket

        return KernelSocket.from_fd(fd)

    def local_cid(self) -> int:
        """Return the CID of this machine as the kernel knows it."""
        from vsock._kernel_socket import kernel_local_cid

        return kernel_local_cid()


def _refuse_green() -> None:
    if is_patched():
        raise UsageError(
            "the transport 'kernel' does not work with gevent or eventlet; "
            "their own socket.socket(AF_VSOCK) does"
        )


Transport = SwitchTransport | KernelTransport
"""What `choose` returns, and what every ``transport=`` argument accepts beside a name."""


def choose(transport: Transport | str | None = None) -> Transport:
    """Return the transport that `transport`, else ``VSOCK_TRANSPORT``, else the default names.

    Raises:
        UsageError: the name is not ``switch`` or ``kernel``.
    """
    if isinstance(transport, SwitchTransport | KernelTransport):
        return transport
    name = transport or os.environ.get("VSOCK_TRANSPORT") or "switch"
    if name == "kernel":
        return KernelTransport()
    if name == "switch":
        # Late, because most of what it costs to import is paid by programs that only parse
        # addresses.
        from vsock.runtime import default_runtime_dir

        return SwitchTransport(str(default_runtime_dir()))
    raise UsageError(f"unknown transport {name!r} (known: switch, kernel)")


def hybrid_request(port: int) -> bytes:
    """Return the line that asks a hybrid socket for the guest's `port`."""
    return b"CONNECT %d\n" % port


def hybrid_answer(line: bytes, address: HybridAddress) -> int:
    """Return the port that a hybrid socket's answer `line` gives us.

    Raises:
        ConnectRefused: the line is empty: the hypervisor closed the socket, which is how it
        refuses. ProtocolError: the line is not ``OK <port>``.
    """
    if not line:
        raise transport_error(errno.ECONNRESET, f"connect to {address}")
    word, _, number = line.removesuffix(b"\n").partition(b" ")
    is_whole = line.endswith(b"\n") and len(line) <= LONGEST_HYBRID_ANSWER
    if not (is_whole and word == b"OK" and number.isdigit() and int(number) <= 0xFFFFFFFF):
        raise ProtocolError(errno.EPROTO, f"{address.path}: expected 'OK <port>', got {line!r}")
    return int(number)


def hybrid_connect(address: HybridAddress, timeout: float) -> tuple[_Base, int]:
    """Connect to a guest's port behind a hybrid socket: the stream, and our port.

    Raises:
        ConnectTimeout: there was no answer within `timeout` seconds, or the queue was full so long.
        ConnectRefused, ProtocolError: as `hybrid_answer` says.
        OSError: there is no such Unix socket.
    """
    deadline = time.monotonic() + timeout
    sock = unix_connect(address, timeout)
    try:
        sock.sendall(hybrid_request(address.port))
        line = b""
        # Byte by byte: what follows the line is the guest's data already.
        while not line.endswith(b"\n") and len(line) <= LONGEST_HYBRID_ANSWER:
            if not _endpoint.wait(sock, select.POLLIN, deadline):
                raise transport_error(errno.ETIMEDOUT, f"connect to {address}")
            piece = sock.recv(1)
            if not piece:
                break
            line += piece
        return sock, hybrid_answer(line, address)
    except BaseException:
        sock.close()
        raise


def unix_connect(address: UnixAddress | HybridAddress, timeout: float) -> _Base:
    """Connect to the Unix stream socket that an address leads to.

    Raises:
        ConnectTimeout: its queue was full for `timeout` seconds.
        OSError: there is no such Unix socket.
    """
    sock = adapted(_Base)(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        with _unix.naming(address.path):
            _unix.connect(sock, address.path, timeout)
    except BlockingIOError:
        sock.close()
        raise transport_error(errno.ETIMEDOUT, f"connect to {address}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def hybrid_listening_path(address: HybridAddress) -> str:
    """Return the path where a hypervisor looks for the host's listener on a port."""
    return f"{address.path}_{address.port}"

"""The calls that move data: what `vsock.socket` does before and after the system call.

The descriptor is a Unix socket, so the kernel does nearly all of it. What differs from AF_VSOCK is
put right here, in the order in which the kernel checks (kernel-semantics, 6 and 7): flags that
AF_VSOCK refuses or ignores, what is an error before there is a connection, a receive after
``shutdown(SHUT_RD)``, the longest message, and MSG_EOR, which AF_UNIX drops.

**MSG_EOR** (SOCK_SEQPACKET): a message that ends a record travels with a file descriptor beside it,
every other message without. The receiver gives no room for descriptors, so the kernel drops it and
says MSG_CTRUNC; that is the mark. See docs/reference/endpoint-protocol.md.

Not for the life of a socket, which is `vsock._socket_class`.
"""

import array
import errno
import os
import socket as _socket
from collections.abc import Iterable, Sequence
from typing import Any, Final

from vsock._arguments import arguments_first, look_at, look_at_sendto
from vsock._green import Base as _Base
from vsock._life import Life
from vsock.address import as_target
from vsock.errors import state_error

SOCK_STREAM: Final = _socket.SOCK_STREAM
SOCK_SEQPACKET: Final = _socket.SOCK_SEQPACKET
_MSG_OOB: Final = _socket.MSG_OOB
_MSG_EOR: Final = _socket.MSG_EOR
_MSG_WAITALL: Final = _socket.MSG_WAITALL
_MSG_CTRUNC: Final = _socket.MSG_CTRUNC
_MSG_ERRQUEUE: Final = 0x2000
_UNUSUAL: Final = _MSG_OOB | _MSG_ERRQUEUE
_marks: list[int] = []


class DataCalls(_Base):
    """The data calls of a connected socket; what they need of the rest is in `_life`."""

    __slots__ = ("_life",)
    _life: Life

    def _require_stream(self) -> None:
        """Raise ENOTCONN unless there is a connection (a verdict that has come is taken)."""
        raise NotImplementedError

    def _longest_message(self, length: int) -> int:
        """Return the length that a message may have; asked when `length` seems too much."""
        raise NotImplementedError

    def _check_end(self) -> None:
        """Raise ECONNRESET, once, if the data ends because the connection did not end well."""
        raise NotImplementedError

    @arguments_first
    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive up to `bufsize` bytes, or one message; empty at the end of the data."""
        if self._is_over(bufsize, flags):
            return b""
        data = super().recv(bufsize, flags)
        if not data:
            self._check_end()
        return data

    @arguments_first
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into `buffer` (its first `nbytes`, if given) and return how much came."""
        if self._is_over(nbytes or memoryview(buffer).nbytes, flags):
            return 0
        length = super().recv_into(buffer, nbytes, flags)
        if not length:
            self._check_end()
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
            look_at(_Base.recvmsg, bufsize, ancbufsize, flags)
        if self._is_over(bufsize, flags):
            return b"", [], 0, None
        data, _, flags, _ = super().recvmsg(bufsize, 0, flags)
        if not data:
            self._check_end()
        return data, [], self._told_flags(flags), None

    @arguments_first
    def recvmsg_into(
        self, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        """Receive like `recvmsg`, into several buffers one after the other."""
        views = [memoryview(buffer) for buffer in buffers]
        if ancbufsize:
            look_at(_Base.recvmsg_into, views, ancbufsize, flags)
        if self._is_over(sum(view.nbytes for view in views), flags):
            return 0, [], 0, None
        length, _, flags, _ = super().recvmsg_into(views, 0, flags)
        if not length:
            self._check_end()
        return length, [], self._told_flags(flags), None

    @arguments_first
    def send(self, data: Any, flags: int = 0, /) -> int:
        """Send `data`, or as much of it as fits now; a message (SOCK_SEQPACKET) whole.

        Raises:
            OSError: EPIPE (shut down by either side, or the connection is over), EMSGSIZE (longer
                than a receive buffer of either side), ENOTCONN.
        """
        self._may_send(flags)
        if self.type == SOCK_SEQPACKET:
            return self._send_message([data], flags)
        return super().send(data, flags)

    @arguments_first
    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """Send all of `data`; a message (SOCK_SEQPACKET) is sent as with `send`."""
        self._may_send(flags)
        if self.type == SOCK_SEQPACKET:
            self._send_message([data], flags)
        else:
            super().sendall(data, flags)

    def sendto(self, data: Any, *rest: Any) -> int:
        """Refuse to send to an address: EISCONN if connected, else EOPNOTSUPP."""
        look_at_sendto(data, rest)
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
            look_at(_Base.sendmsg, [], ancdata, flags)
        if address is not None:
            address = as_target(address)
        self._may_send(flags, address)
        if self.type == SOCK_SEQPACKET:
            return self._send_message(list(buffers), flags)
        return super().sendmsg(buffers, (), flags)

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file's bytes, as `socket.socket.sendfile` does."""
        self._may_send(0)
        return super().sendfile(file, offset, count)

    def _is_over(self, length: int, flags: int) -> bool:
        """Do the kernel's checks before a receive; true if it gives nothing, at once."""
        life = self._life
        if flags & _UNUSUAL and self.fileno() < 0:
            raise state_error(errno.EBADF)
        if flags & _MSG_ERRQUEUE:
            raise state_error(errno.EAGAIN)
        if not life.has_stream:
            self._require_stream()
        if flags & _MSG_OOB:
            raise state_error(errno.EOPNOTSUPP)
        if not life.receives or length == 0:
            return True
        if flags & _MSG_WAITALL or life.low_water > 1 or life.options.size <= 1:
            target = length if flags & _MSG_WAITALL else min(life.low_water, length)
            if self.type == SOCK_STREAM and target >= life.options.size:
                raise state_error(errno.ENOMEM)
        return False

    def _told_flags(self, flags: int) -> int:
        """Return the flags of a received message as AF_VSOCK tells them."""
        if flags & _MSG_CTRUNC:
            flags = flags & ~_MSG_CTRUNC | (_MSG_EOR if self.type == SOCK_SEQPACKET else 0)
        return flags

    def _may_send(self, flags: int, address: Any = None) -> None:
        """Do the kernel's checks before a send."""
        life = self._life
        if (address is not None or flags & _MSG_OOB) and self.fileno() < 0:
            raise state_error(errno.EBADF)
        if flags & _MSG_OOB:
            raise state_error(errno.EOPNOTSUPP)
        if address is not None:
            raise state_error(errno.EISCONN if life.has_stream else errno.EOPNOTSUPP)
        if not life.sends and not (self.type == SOCK_STREAM and life.has_stream):
            # A stream's descriptor says it by itself, and with a signal, as it should.
            raise state_error(errno.EPIPE)
        if not life.has_stream:
            self._require_stream()

    def _send_message(self, buffers: Sequence[Any], flags: int) -> int:
        views = [memoryview(buffer) for buffer in buffers]
        length = sum(view.nbytes for view in views)
        if length == 0:
            # Nothing goes out: an empty message would read as the end.
            return 0
        if length > min(self._life.options.size, self._life.peer_buffer) and (
            length > self._longest_message(length)
        ):
            raise state_error(errno.EMSGSIZE)
        if flags & _MSG_EOR:
            beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [_mark()]))]
            return super().sendmsg(views, beside, flags & ~_MSG_EOR)
        return super().sendmsg(views, (), flags)


def _mark() -> int:
    """Return a descriptor to send beside the end of a record; it gives its receiver nothing."""
    if not _marks:
        _marks.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return _marks[0]

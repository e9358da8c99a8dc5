"""The option calls: `getsockopt` and `setsockopt` as AF_VSOCK has them (kernel-semantics, 10).

Options of level AF_VSOCK are kept here (`vsock._options` has their rules) and the switch is told of a
new buffer size. Options of SOL_SOCKET are the descriptor's own, but for those that would tell that
it is a Unix socket, or that Unix sockets have and AF_VSOCK has not.
"""

import contextlib
import errno
import socket as _socket
from typing import Any, Final, overload

from vsock import _endpoint, _note
from vsock._arguments import arguments_first, look_at
from vsock._data_calls import SOCK_STREAM, DataCalls
from vsock._endpoint import Op, Request
from vsock._green import Base as _Base
from vsock._note import LOW_WATER, OPTIONS, ZEROCOPY, Note, State
from vsock._options import AF_VSOCK, DEFAULT_BUFFER
from vsock.errors import state_error

_SO_ZEROCOPY: Final = 60
_NOT_OURS: Final = {_socket.SO_PASSCRED, 34, 42, 76} | _note.NOT_THE_PROGRAMS
"""Options of Unix sockets that AF_VSOCK has not: SO_PASSCRED, _PASSSEC, _PEEK_OFF, _PASSPIDFD; and those of the note."""
_LARGEST_BUFFER: Final = 0xFFFFFFFF
_INTEGER_BYTES: Final = 8
_LARGEST_INTEGER: Final = 0xFFFFFFFFFFFFFFFF


class OptionCalls(DataCalls):
    """The options of a socket."""

    __slots__ = ()

    def _settle(self, seconds: float = 0) -> None:
        """If a connect is under way, take its verdict if that comes within `seconds`."""
        raise NotImplementedError

    def _require_open_file(self) -> None:
        """Raise EBADF after close."""
        raise NotImplementedError

    def _held_send_buffer(self) -> int:
        """Return the send buffer that the socket has again after its connect, as the kernel counts it."""
        raise NotImplementedError

    def _hold_send_buffer(self, size: int) -> None:
        """Change the send buffer that the socket will have after its connect, as SO_SNDBUF would now."""
        raise NotImplementedError

    def _look(self) -> Note:
        """Return what the socket is now, whoever made it so."""
        note = _note.read(self)
        if note is not None:
            self._life.note = note
        return self._life.note

    def _put(self, note: Note) -> None:
        """Write the socket's note."""
        _note.write(self, note)
        self._life.note = note

    @overload
    def getsockopt(self, level: int, optname: int, /) -> int: ...
    @overload
    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...
    @arguments_first
    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> int | bytes:
        """Return an option: those of AF_VSOCK (as bytes, with `buflen`) and of SOL_SOCKET.

        ``SO_ERROR`` tells (once) how a non-blocking connect ended.
        """
        self._require_open_file()
        if level == AF_VSOCK:
            # Like Python's own sockets of AF_VSOCK: without a length, a number of 64 bits.
            value = self._life.options.get(optname, buflen or _INTEGER_BYTES)
            return value if buflen else int.from_bytes(value, "little")
        if level != _socket.SOL_SOCKET:
            raise state_error(errno.ENOPROTOOPT)
        if optname in _NOT_OURS:
            raise state_error(errno.EOPNOTSUPP)
        number = self._own_option(optname)
        if number is None:
            return super().getsockopt(level, optname, buflen)
        return number.to_bytes(4, "little")[:buflen] if buflen else number

    @overload
    def setsockopt(self, level: int, optname: int, value: Any, /) -> None: ...
    @overload
    def setsockopt(self, level: int, optname: int, value: None, optlen: int, /) -> None: ...
    def setsockopt(self, level: int, optname: int, value: Any, *optlen: int) -> None:
        """Set an option: those of AF_VSOCK (64-bit sizes and timevals, as bytes), SOL_SOCKET.

        A new buffer size is told to the other side at once.

        Raises:
            OSError: ENOPROTOOPT, EINVAL, ERANGE or EOPNOTSUPP, as docs/reference/options.md says.
        """
        look_at(_Base.setsockopt, level, optname, 0)
        if not isinstance(value, int) and not optlen:
            memoryview(value)
        self._require_open_file()
        if level == AF_VSOCK:
            given = (
                (value & _LARGEST_INTEGER).to_bytes(_INTEGER_BYTES, "little")
                if isinstance(value, int)
                else bytes(memoryview(value or b""))
            )
            self._settle()
            is_other_size = self._life.options.set(optname, given)
            self._keep_options(announce=is_other_size)
            return
        if level != _socket.SOL_SOCKET:
            raise state_error(errno.ENOPROTOOPT)
        if optname in _NOT_OURS:
            raise state_error(errno.EOPNOTSUPP)
        if optname == _socket.SO_SNDBUF and self._is_connecting():
            self._hold_send_buffer(_as_integer(value))
        elif optname == _SO_ZEROCOPY:
            self._set_zerocopy(_as_integer(value))
        elif optname == _socket.SO_RCVLOWAT:
            self._set_low_water(_as_integer(value))
        elif isinstance(value, int):
            # Sockets of AF_VSOCK pass numbers of 64 bits on, and the kernel reads the lower half.
            lower = (value + (1 << 31)) % (1 << 32) - (1 << 31)
            super().setsockopt(level, optname, lower)
        else:
            super().setsockopt(level, optname, value, *optlen)

    def _own_option(self, optname: int) -> int | None:
        """Return the value of a SOL_SOCKET option that the descriptor does not know."""
        life = self._life
        if optname == _socket.SO_ERROR:
            self._settle()
            if life.has_stream:
                return None
            if code := life.note.error:
                self._put(life.note._replace(code=0))
                life.error = None
            return code
        if optname == _socket.SO_SNDBUF and self._is_connecting():
            return self._held_send_buffer()
        if optname == _socket.SO_RCVLOWAT and not life.has_low_water:
            return 1
        if optname == _socket.SO_ACCEPTCONN:
            return int(life.state is State.LISTENING)
        if optname == _socket.SO_DOMAIN:
            return AF_VSOCK
        if optname == _socket.SO_PROTOCOL:
            return 0
        return int(life.wants_zerocopy) if optname == _SO_ZEROCOPY else None

    def _set_zerocopy(self, value: int) -> None:
        if value not in (0, 1):
            raise state_error(errno.EINVAL)
        if self._life.has_stream:
            raise state_error(errno.EOPNOTSUPP)
        note = self._look()
        self._put(note.plus(ZEROCOPY) if value else note.minus(ZEROCOPY))

    def _set_low_water(self, value: int) -> None:
        is_stream = self.type == SOCK_STREAM
        if is_stream and not 0 <= value <= self._life.options.size:
            raise state_error(errno.EINVAL)
        life = self._life
        if value in (0, 1) and self._is_connecting():
            # The kernel's own field keeps the send buffer meanwhile.
            if life.has_low_water:
                size = self._held_send_buffer()
                self._put(life.note.minus(LOW_WATER))
                self._hold_send_buffer(size // 2)
            life.low_water = 1
            return
        super().setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT, value)
        life.low_water = super().getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT)
        note = self._look()
        self._put(note.plus(LOW_WATER) if life.low_water > 1 else note.minus(LOW_WATER))

    def _is_connecting(self) -> bool:
        self._settle()
        return self._life.state is State.CONNECTING

    def _limit_buffer(self) -> None:
        """Cut the buffer size to what a connection can have, now that there is one."""
        self._life.options.size = min(self._life.options.size, _LARGEST_BUFFER)

    def _keep_options(self, *, announce: bool) -> None:
        """Keep the options with the socket, and tell the switch if it knows of the old ones."""
        life = self._life
        if life.has_stream:
            self._limit_buffer()
        is_kept = _note.write_options(self, life.options)
        self._put(life.note.plus(OPTIONS) if is_kept else life.note.minus(OPTIONS))
        if announce or life.state is State.LISTENING:
            self._announce_options()

    def _buffer_to_announce(self) -> int:
        """Return the buffer size for a request; 0 is the switch's own default."""
        size = self._life.options.size
        return 0 if size == DEFAULT_BUFFER else max(1, min(size, _LARGEST_BUFFER))

    def _announce_options(self) -> None:
        """Tell the switch of options that have changed, if it knows of the old ones."""
        life, options = self._life, self._life.options
        if life.has_stream and life.transport is not None:
            # A connection that has ended has no buffer either.
            with contextlib.suppress(OSError):
                size = max(1, options.size)
                life.peer_buffer = life.transport.set_buffer(_note.cookie(self), size)
        elif life.state is State.LISTENING:
            # No reply is due here: it could not be told from the ACCEPTs that wait before it.
            _endpoint.send(self, self._listen_request(), options.encode())

    def _listen_request(self) -> Request:
        buffer = max(1, min(self._life.options.size, _LARGEST_BUFFER))
        return Request(Op.LISTEN, value=self._life.note.number, buffer=buffer)

    def _longest_message(self, length: int) -> int:
        """Return the length that a message may have, after asking for the peer's newest buffer."""
        life = self._life
        if length <= life.options.size and life.transport is not None:
            try:
                buffer = life.transport.set_buffer(_note.cookie(self), 0)
            except OSError:
                buffer = 0
            if not buffer:
                # It is over, or only what came before is left, which the system call says best.
                return length
            life.peer_buffer = buffer
        return min(life.options.size, life.peer_buffer)


def _as_integer(value: Any) -> int:
    """Return the number that an integer option is set to, be it given as one or as its bytes."""
    if isinstance(value, int):
        return value
    given = bytes(memoryview(value or b""))
    if len(given) < 4:
        raise state_error(errno.EINVAL)
    return int.from_bytes(given[:4], "little", signed=True)

"""The calls `getsockopt` and `setsockopt` as AF_VSOCK has them (kernel-semantics, 10).

Options of level AF_VSOCK are kept by us (`vsock._socket.options` has their rules), and the node is
told of a new buffer size. Options of SOL_SOCKET are the descriptor's own, except for those that
would show that it is a Unix socket, and those that Unix sockets have and AF_VSOCK has not.
"""

import contextlib
import errno
from socket import (
    SO_ACCEPTCONN,
    SO_DOMAIN,
    SO_ERROR,
    SO_PASSCRED,
    SO_PROTOCOL,
    SO_RCVLOWAT,
    SO_REUSEPORT,
    SO_SNDBUF,
    SOCK_STREAM,
    SOL_SOCKET,
)
from typing import Any, Final

from vsock import _client
from vsock._client import Op, Request, cookie
from vsock._socket import send_buffer
from vsock._socket.metadata import LOW_WATER, RESERVED_OPTIONS, ZEROCOPY, State
from vsock._socket.options import AF_VSOCK
from vsock._socket.state import LARGEST_BUFFER, SocketState
from vsock._system.green import Base
from vsock.errors import state_error

SO_ZEROCOPY: Final = 60
_NOT_OURS: Final = {SO_PASSCRED, 34, 42, 76} | {26, 27, 44, 50} | RESERVED_OPTIONS
"""Options that AF_VSOCK does not have and Unix sockets do: SO_PASSCRED, _PASSSEC, _PEEK_OFF and _PASSPIDFD; SO_ATTACH_FILTER,
_DETACH_FILTER, _LOCK_FILTER and _ATTACH_BPF, whose filters AF_VSOCK never runs; and those of the metadata."""
_FIXED: Final = {SO_DOMAIN: AF_VSOCK, SO_PROTOCOL: 0}
_INTEGER_BYTES: Final = 8
_LARGEST_INTEGER: Final = 0xFFFFFFFFFFFFFFFF


def get_option(sock: Base, state: SocketState, level: int, name: int, room: int) -> int | bytes:
    """Return an option of a stream socket: a number, or `room` bytes at most if that is not 0."""
    if level == AF_VSOCK:
        # Like Python's own sockets of AF_VSOCK: without a length, a number of 64 bits.
        value = state.options.get(name, room or _INTEGER_BYTES)
        return value if room else int.from_bytes(value, "little")
    check_level(level, name)
    number = _own_value(sock, state, name)
    return get_common(sock, name, room) if number is None else as_asked(number, room)


def set_option(
    sock: Base, state: SocketState, level: int, name: int, value: Any, *length: int
) -> None:
    """Set an option of a stream socket."""
    if level == AF_VSOCK:
        given = (
            (value & _LARGEST_INTEGER).to_bytes(_INTEGER_BYTES, "little")
            if isinstance(value, int)
            else bytes(memoryview(value or b""))
        )
        state.update(sock)
        is_other_size = state.options.set(name, given)
        keep_options(sock, state, is_other_size=is_other_size)
        return
    check_level(level, name)
    if name == SO_SNDBUF and _is_connecting(sock, state):
        send_buffer.set_held_size(sock, state.has_low_water, _as_integer(value))
    elif name == SO_ZEROCOPY:
        _set_zerocopy(sock, state, as_flag(value))
    elif name == SO_RCVLOWAT:
        _set_low_water(sock, state, _as_integer(value))
    else:
        set_common(sock, name, value, *length)


def check_level(level: int, name: int) -> None:
    """Raise what AF_VSOCK says to options that are not of SOL_SOCKET, or that it has not."""
    if level != SOL_SOCKET:
        raise state_error(errno.ENOPROTOOPT)
    if name in _NOT_OURS:
        raise state_error(errno.EOPNOTSUPP)


def get_common(sock: Base, name: int, room: int) -> int | bytes:
    """Return an option of SOL_SOCKET that the descriptor knows, or that is the same for every socket of ours."""
    if name in _FIXED:
        return as_asked(_FIXED[name], room)
    return Base.getsockopt(sock, SOL_SOCKET, name, room)


def set_common(sock: Base, name: int, value: Any, *length: int) -> None:
    """Set an option of SOL_SOCKET that the descriptor knows."""
    if name == SO_REUSEPORT and _as_integer(value):
        # Older kernels let Unix sockets have it.
        raise state_error(errno.EOPNOTSUPP)
    if isinstance(value, int):
        # Sockets of AF_VSOCK pass numbers of 64 bits on, and the kernel reads the lower half.
        Base.setsockopt(sock, SOL_SOCKET, name, (value + (1 << 31)) % (1 << 32) - (1 << 31))
    else:
        Base.setsockopt(sock, SOL_SOCKET, name, value, *length)


def as_asked(number: int, room: int) -> int | bytes:
    """Return a number as `getsockopt` does: as it is, or as `room` bytes."""
    return number.to_bytes(4, "little")[:room] if room else number


def listen_request(state: SocketState) -> Request:
    """Return the request that makes the socket a listener, or changes what it takes; `options.encode()` goes behind it."""
    buffer = max(1, min(state.options.size, LARGEST_BUFFER))
    return Request(Op.LISTEN, value=state.metadata.number, buffer=buffer)


def keep_options(sock: Base, state: SocketState, *, is_other_size: bool) -> None:
    """Keep changed options of level AF_VSOCK with the socket, and tell the node if it knows of the old ones."""
    state.store_options(sock)
    if is_other_size or state.state is State.LISTENING:
        announce(sock, state)


def announce(sock: Base, state: SocketState) -> None:
    """Tell the node of options that have changed, if it knows of the old ones."""
    if state.has_stream and state.node is not None:
        # A connection that has ended has no buffer either.
        with contextlib.suppress(OSError):
            state.peer_buffer = state.node.set_buffer(cookie(sock), max(1, state.options.size))
    elif state.state is State.LISTENING:
        # No reply is due here: it could not be told from the ACCEPTs that wait before it.
        _client.send(sock, listen_request(state), state.options.encode())


def _own_value(sock: Base, state: SocketState, name: int) -> int | None:
    """Return the value of a SOL_SOCKET option that the descriptor does not know."""
    if name == SO_ERROR:
        state.update(sock)
        return None if state.has_stream else state.clear_error(sock)
    if name == SO_SNDBUF and _is_connecting(sock, state):
        return send_buffer.held_size(sock, state.has_low_water)
    if name == SO_RCVLOWAT and not state.has_low_water:
        return 1
    if name == SO_ACCEPTCONN:
        return int(state.state is State.LISTENING)
    return int(state.wants_zerocopy) if name == SO_ZEROCOPY else None


def as_flag(value: Any) -> bool:
    """Return what an option that is on or off is set to; EINVAL if it is neither 0 nor 1."""
    number = _as_integer(value)
    if number not in (0, 1):
        raise state_error(errno.EINVAL)
    return bool(number)


def _set_zerocopy(sock: Base, state: SocketState, value: bool) -> None:
    if state.has_stream:
        raise state_error(errno.EOPNOTSUPP)
    kept = state.load(sock)
    state.store(sock, kept.plus(ZEROCOPY) if value else kept.minus(ZEROCOPY))


def _set_low_water(sock: Base, state: SocketState, value: int) -> None:
    if sock.type == SOCK_STREAM and not 0 <= value <= state.options.size:
        raise state_error(errno.EINVAL)
    if value in (0, 1) and _is_connecting(sock, state):
        # The kernel's own field keeps the send buffer meanwhile.
        if state.has_low_water:
            size = send_buffer.held_size(sock, has_low_water=True)
            state.store(sock, state.metadata.minus(LOW_WATER))
            send_buffer.set_held_size(sock, has_low_water=False, size=size // 2)
        state.low_water = 1
        return
    Base.setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, value)
    state.low_water = Base.getsockopt(sock, SOL_SOCKET, SO_RCVLOWAT)
    kept = state.load(sock)
    state.store(sock, kept.plus(LOW_WATER) if state.low_water > 1 else kept.minus(LOW_WATER))


def _is_connecting(sock: Base, state: SocketState) -> bool:
    state.update(sock)
    return state.state is State.CONNECTING


def _as_integer(value: Any) -> int:
    """Return the number that an integer option is set to, be it given as one or as its bytes."""
    if isinstance(value, int):
        return value
    given = bytes(memoryview(value or b""))
    if len(given) < 4:
        raise state_error(errno.EINVAL)
    return int.from_bytes(given[:4], "little", signed=True)

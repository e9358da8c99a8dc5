"""The send buffer during a connect: as small as it gets, so that the held request keeps the socket from being writable.

The size that the socket had before is kept in its SO_RCVLOWAT, which has no other use before there
is a connection, unless our user has set that option (`has_low_water`): then the size is the usual
one afterwards.
"""

from socket import SO_RCVLOWAT, SO_SNDBUF, SO_TYPE, SOCK_STREAM, SOL_SOCKET
from typing import Final

from vsock._system.green import Base

_LEAST: Final = 4608
"""The smallest send buffer of a socket as the kernel counts it."""
_USUAL: Final = 212992
_USUAL_OF_MESSAGES: Final = 2 << 24
"""Of a socket that keeps messages: the kernel gives what its settings allow."""


def begin_hold(sock: Base, has_low_water: bool) -> None:
    """Make the send buffer as small as it gets: then 2048 bytes in it are enough for "not writable"."""
    if not has_low_water:
        size = Base.getsockopt(sock, SOL_SOCKET, SO_SNDBUF)
        Base.setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, size)
    Base.setsockopt(sock, SOL_SOCKET, SO_SNDBUF, 1)


def held_size(sock: Base, has_low_water: bool) -> int:
    """Return the send buffer that the socket will have after its connect, as the kernel counts it."""
    if has_low_water:
        is_stream = Base.getsockopt(sock, SOL_SOCKET, SO_TYPE) == SOCK_STREAM
        return _USUAL if is_stream else _USUAL_OF_MESSAGES
    return Base.getsockopt(sock, SOL_SOCKET, SO_RCVLOWAT)


def set_held_size(sock: Base, has_low_water: bool, size: int) -> None:
    """Change the send buffer that the socket will have after its connect, as SO_SNDBUF would now."""
    if not has_low_water:
        size = min(max(2 * size, _LEAST), 0x7FFFFFFF)
        Base.setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, size)


def end_hold(sock: Base, has_low_water: bool) -> None:
    """Give the socket its send buffer back, if no other holder of it has."""
    size = held_size(sock, has_low_water)
    if size >= _LEAST:
        # The kernel doubles the number that it is given.
        Base.setsockopt(sock, SOL_SOCKET, SO_SNDBUF, size // 2)
        if not has_low_water:
            Base.setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, 1)

"""The options of level AF_VSOCK, with the rules of the Linux kernel (kernel-semantics, 10.1).

No I/O: values in, values out, and what they do to each other. The calls that read and change them
are in `vsock._socket.socket_options`. Everything is kept as the kernel keeps it: sizes are 64-bit,
and the connect timeout is counted in ticks of the kernel.
"""

import errno
import math
import struct
import time
from typing import Final

from vsock.errors import UsageError, state_error

AF_VSOCK: Final = 40
SO_VM_SOCKETS_BUFFER_SIZE: Final = 0
"""Receive buffer in bytes, 64 bits; 262144 unless set."""
SO_VM_SOCKETS_BUFFER_MIN_SIZE: Final = 1
"""What the buffer size is raised to, in bytes, 64 bits; 128 unless set."""
SO_VM_SOCKETS_BUFFER_MAX_SIZE: Final = 2
"""What the buffer size is cut to, in bytes, 64 bits; 262144 unless set. The maximum wins."""
SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: Final = 6
SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW: Final = 8
SO_VM_SOCKETS_CONNECT_TIMEOUT: Final = SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD
"""How long the other side may take to answer a connect: a timeval of two 64-bit numbers; 2 s unless set.

On 64-bit machines old and new are the same structure, and C programs get the old number."""

DEFAULT_BUFFER: Final = 262144
CONNECT_TIMEOUT = 2.0
"""Seconds that a connect waits for an answer unless told otherwise, as in the kernel."""

HZ: Final = round(1 / time.clock_getres(6))  # CLOCK_MONOTONIC_COARSE, which Python does not name
"""Ticks of the kernel in a second, in which it counts timeouts."""
_LONGEST_TICKS: Final = (1 << 63) - 1
_LARGEST: Final = (1 << 64) - 1
_INHERITED: Final = struct.Struct("<QQQQ")
_SIZE: Final = struct.Struct("=Q")
_TIMEVAL: Final = struct.Struct("=qq")
_STRUCTS: Final = {
    SO_VM_SOCKETS_BUFFER_SIZE: _SIZE,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE: _SIZE,
    SO_VM_SOCKETS_BUFFER_MAX_SIZE: _SIZE,
    SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: _TIMEVAL,
    SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW: _TIMEVAL,
}


class VsockOptions:
    """The options of one socket; `size` is the receive buffer in bytes."""

    __slots__ = ("connect_timeout", "largest", "size", "smallest")

    def __init__(self) -> None:
        self.size = DEFAULT_BUFFER
        self.smallest = 128
        self.largest = DEFAULT_BUFFER
        self.connect_timeout = CONNECT_TIMEOUT

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The buffer's size, its minimum and its maximum."""
        return (self.size, self.smallest, self.largest)

    def get(self, name: int, room: int) -> bytes:
        """Return option `name` for a caller with `room` bytes.

        Raises:
            OSError: ENOPROTOOPT (no such option), EINVAL (less room than it needs).
        """
        layout = _struct(name)
        if room < layout.size:
            raise state_error(errno.EINVAL)
        if layout is _TIMEVAL:
            # Exact ticks stay exact: 2.0 s are 500.
            ticks = -int(-self.connect_timeout * HZ // 1)
            return layout.pack(ticks // HZ, ticks % HZ * (1_000_000 // HZ))
        return layout.pack(self.sizes[name])

    def set(self, name: int, value: bytes) -> bool:
        """Change option `name`; tell whether the receive buffer has another size now.

        Raises:
            OSError: ENOPROTOOPT (no such option), EINVAL (`value` is too short), ERANGE (no time).
        """
        layout = _struct(name)
        if len(value) < layout.size:
            raise state_error(errno.EINVAL)
        if layout is _TIMEVAL:
            self.connect_timeout = _seconds(*layout.unpack_from(value))
            return False
        (number,) = layout.unpack_from(value)
        wanted = self.size
        if name == SO_VM_SOCKETS_BUFFER_SIZE:
            wanted = number
        elif name == SO_VM_SOCKETS_BUFFER_MIN_SIZE:
            self.smallest = number
        else:
            self.largest = number
        # In this order the maximum wins over a minimum above it.
        before, self.size = self.size, min(max(wanted, self.smallest), self.largest)
        return self.size != before

    def encode(self) -> bytes:
        """Return what a listener leaves with the switch for the connections that come from now on."""
        microseconds = min(round(self.connect_timeout * 1e6), _LARGEST)
        return _INHERITED.pack(self.size, self.smallest, self.largest, microseconds)

    @classmethod
    def decode(cls, inherited: bytes) -> "VsockOptions":
        """Return the options that an accepted connection inherits; the defaults if none came."""
        child = cls()
        if inherited:
            child.size, child.smallest, child.largest, timeout = _INHERITED.unpack(inherited)
            child.connect_timeout = timeout / 1e6
        return child


def checked_timeout(seconds: float) -> float:
    """Return a connect timeout; `UsageError` if it is no time."""
    if not 0 <= seconds < math.inf:
        raise UsageError(f"a connect timeout is a number of seconds, not {seconds!r}")
    return seconds


def _struct(name: int) -> struct.Struct:
    layout = _STRUCTS.get(name)
    if layout is None:
        raise state_error(errno.ENOPROTOOPT)
    return layout


def _seconds(seconds: int, microseconds: int) -> float:
    """Return what the kernel makes of a timeval: whole ticks, rounded up, and 0 is the default."""
    if seconds < 0 or microseconds >= 1_000_000 or seconds >= _LONGEST_TICKS // HZ - 1:
        raise state_error(errno.ERANGE)
    # Negative microseconds slip through there, as a huge unsigned number that wraps around.
    tick = 1_000_000 // HZ
    ticks = seconds * HZ + ((microseconds + tick - 1) % (1 << 64)) // tick
    return ticks / HZ if ticks else CONNECT_TIMEOUT

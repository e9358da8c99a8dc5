"""What is in a pipe that nobody has read."""

import struct
from fcntl import ioctl
from termios import FIONREAD
from typing import IO

__all__ = ["readable"]


def readable(pipe: IO[bytes]) -> int:
    """How many bytes can be read from a pipe."""
    (count,) = struct.unpack("i", ioctl(pipe, FIONREAD, bytes(4)))
    return int(count)

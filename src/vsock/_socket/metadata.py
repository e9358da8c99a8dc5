"""What a VSOCK socket is, kept in the socket itself: its *metadata*.

A socket is more than one Python object: `dup`, a fork, and a descriptor that was passed on or inherited are
all ways to the same socket, and have to find the same state. So what they must agree on is kept where every
holder of the descriptor finds it: in fields that the kernel has for each socket, and makes no use of on Unix
sockets::

    SO_MAX_PACING_RATE   64 bits, written and read whole: 63..54 the mark, 53..51 the state, 50..40
                         the flags, 39..32 `code`, 31..0 `number` (see `Metadata`)
    SO_INCOMING_CPU      32 bits: the other side's port
    its abstract name    given once: our address
    times of its inode   the options of level AF_VSOCK, where they are not the defaults

Programs under ``vsock run`` keep the same metadata (crates/preload), so a socket can go from one
kind of program to the other. The layout is part of docs/reference/client-protocol.md. This module
decides nothing.
"""

import contextlib
import errno
import os
import struct
from enum import IntEnum
from socket import SHUT_RD, SHUT_WR, SOL_SOCKET
from typing import Final, NamedTuple

from vsock._client import cookie
from vsock._socket.options import HZ, VsockOptions
from vsock._system.green import Base
from vsock.address import Address
from vsock.errors import state_error

_SO_MAX_PACING_RATE: Final = 47
_SO_INCOMING_CPU: Final = 49
_MARK: Final = 0x2B5
_WORD: Final = struct.Struct("=Q")
_PORT: Final = struct.Struct("=I")
_PREFIX: Final = b"\0vsock/"
_DEFAULT_TICKS: Final = 2 * HZ
_ATTEMPTS: Final = 8
"""How many names are tried."""
_NARROW: Final = (1 << 29) - 1
_SECOND: Final = 10**9

RESERVED_OPTIONS: Final = {_SO_MAX_PACING_RATE, _SO_INCOMING_CPU}
"""Options of SOL_SOCKET that programs cannot have: the metadata is there."""

ATTACHED: Final = 1
"""Flag: the descriptor leads to the switch."""
BEGUN: Final = 2
"""Flag: the connect under way has begun; the next thing to come is its outcome."""
STREAM: Final = 4
"""Flag: the descriptor is the connection, and not the way to the switch."""
MESSAGES: Final = 8
"""Flag: SOCK_SEQPACKET."""
NO_RECEIVING: Final = 16
"""Flag: our user receives no more."""
ZEROCOPY: Final = 32
"""Flag: SO_ZEROCOPY was asked for, which no connection here has."""
LOW_WATER: Final = 64
"""Flag: SO_RCVLOWAT is more than one byte."""
NO_SENDING: Final = 128
"""Flag: our user sends no more."""
OPTIONS: Final = 512
"""Flag: there are options that are not the defaults."""
END_TOLD: Final = 1024
"""Flag: the node has been asked how the connection ended, and our user knows it if it did not end well."""
_ALL: Final = 2047


class State(IntEnum):
    """How far a socket has come; SHUT_DOWN is after any `shutdown`."""

    FRESH = 0
    BOUND = 1
    LISTENING = 2
    CONNECTING = 3
    CONNECTED = 4
    SHUT_DOWN = 5


def shut(how: int) -> int:
    """Return the flags for a `shutdown` with `how`."""
    return {SHUT_RD: NO_RECEIVING, SHUT_WR: NO_SENDING}.get(how, NO_RECEIVING | NO_SENDING)


class Metadata(NamedTuple):
    """What every holder of a socket has to agree on.

    Attributes:
        state: how far it has come.
        flags: the constants of this module, or'ed.
        code: with a stream: messages of up to ``1 << code`` bytes are known to fit the other side's buffer (0: not
            known); else the errno of a connect that nobody has asked about yet.
        number: the CID of the other side; of a listener its backlog.
    """

    state: State = State.FRESH
    flags: int = 0
    code: int = 0
    number: int = 0

    @property
    def has_stream(self) -> bool:
        """Whether the descriptor is the connection."""
        return bool(self.flags & STREAM)

    @property
    def error(self) -> int:
        """The errno of a connect that nobody has asked about yet; 0 if there is none."""
        return 0 if self.has_stream else self.code

    def plus(self, flags: int) -> "Metadata":
        """Return it with these flags too."""
        return self._replace(flags=self.flags | flags)

    def minus(self, flags: int) -> "Metadata":
        """Return it without these flags."""
        return self._replace(flags=self.flags & ~flags)

    def encode(self) -> int:
        """Return the 64 bits that are kept."""
        state, flags, code, number = self
        return _MARK << 54 | state << 51 | flags << 40 | code << 32 | number

    @classmethod
    def decode(cls, word: int) -> "Metadata | None":
        """Read 64 bits; None if they are no metadata."""
        state = word >> 51 & 7
        if word >> 54 != _MARK or state > State.SHUT_DOWN:
            return None
        return cls(State(state), word >> 40 & _ALL, word >> 32 & 0xFF, word & 0xFFFFFFFF)


def read(sock: Base) -> Metadata | None:
    """Return the metadata of a socket; None if it has none."""
    word = Base.getsockopt(sock, SOL_SOCKET, _SO_MAX_PACING_RATE, 8)
    return Metadata.decode(_WORD.unpack(word)[0]) if len(word) == _WORD.size else None


def write(sock: Base, metadata: Metadata) -> None:
    """Write the metadata of a socket, as a whole."""
    Base.setsockopt(sock, SOL_SOCKET, _SO_MAX_PACING_RATE, _WORD.pack(metadata.encode()))


def write_port(sock: Base, port: int) -> None:
    """Keep the port of the other side; its CID is the metadata's `number`."""
    Base.setsockopt(sock, SOL_SOCKET, _SO_INCOMING_CPU, _PORT.pack(port))


def read_port(sock: Base) -> int:
    """Return the port of the other side."""
    found: tuple[int] = _PORT.unpack(
        Base.getsockopt(sock, SOL_SOCKET, _SO_INCOMING_CPU, _PORT.size)
    )
    return found[0]


def give_name(sock: Base, ours: Address) -> None:
    """Give a socket its address, once: it keeps the one that it has."""
    unique = cookie(sock)
    for _ in range(_ATTEMPTS):
        try:
            Base.bind(sock, _PREFIX + b"%016x/%08x/%08x" % (unique, ours.cid, ours.port))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            if error.errno != errno.EADDRINUSE:
                raise
            # Names have no owner: another user may hold the one that is ours, but not all that there are.
            unique = int.from_bytes(os.urandom(8), "little")
        else:
            return
    raise state_error(errno.EADDRINUSE)


def name(sock: Base) -> Address | None:
    """Return the address that a socket was given."""
    given = Base.getsockname(sock)
    if not isinstance(given, bytes) or not given.startswith(_PREFIX):
        return None
    _, cid, port = given.removeprefix(_PREFIX).split(b"/")
    return Address(int(cid, 16), int(port, 16))


def write_options(sock: Base, options: VsockOptions) -> bool:
    """Keep options with the socket; tell whether they are other than the defaults (`OPTIONS`).

    The inode belongs to the socket's creator: options of a connection that a switch of another user
    has accepted are not kept.
    """
    ticks = -int(-options.connect_timeout * HZ // 1)
    kept = (options.size, options.smallest, options.largest, ticks)
    if kept == (*VsockOptions().sizes, _DEFAULT_TICKS):
        return False
    size, smallest, largest, ticks = kept
    ticks = 0 if ticks == _DEFAULT_TICKS else min(ticks, _NARROW)
    access = _signed(size) * _SECOND + min(smallest, _NARROW)
    with contextlib.suppress(PermissionError):
        os.utime(sock.fileno(), ns=(access, _signed(largest) * _SECOND + ticks))
        return True
    return False


def read_options(sock: Base, metadata: Metadata) -> VsockOptions:
    """Return the options that are kept with a socket."""
    options = VsockOptions()
    if metadata.flags & OPTIONS:
        status = os.fstat(sock.fileno())
        size, options.smallest = divmod(status.st_atime_ns, _SECOND)
        largest, ticks = divmod(status.st_mtime_ns, _SECOND)
        options.size, options.largest = size & 0xFFFFFFFFFFFFFFFF, largest & 0xFFFFFFFFFFFFFFFF
        options.connect_timeout = (ticks or _DEFAULT_TICKS) / HZ
    return options


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number

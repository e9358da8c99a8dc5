"""Digests by which both sides of a copy compare a file: SHA-256, and CRCs where a guest computes them sooner.

They find errors. A guest that lies about its file would lie about any digest of it.

A CRC is that of zlib, gzip and Ethernet (CRC-32/ISO-HDLC), of each segment of a file: so a guest that sums up a large
one says something meanwhile. A guest's program computes it. The program is trusted if it says `CHECK_VALUE` of
`CHECKED`: so do zlib, and `cksum -a crc32b` of GNU's coreutils (9.6) and of Rust's (uutils).
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["CHECKED", "CHECK_VALUE", "CRC32", "KINDS", "SEGMENT", "SHA256", "Digest", "read_crc"]

CRC32: Final = "crc32"
SHA256: Final = "sha256"

SEGMENT: Final = 256 << 20
"""Bytes of a file that have one CRC; the last segment may have fewer."""

CHECKED: Final = "123456789"
CHECK_VALUE: Final = 0xCBF43926
"""The CRC of these digits, by which catalogues of CRCs tell them apart."""

_LONGEST_CRC: Final = 10


class Digest(Protocol):
    """What hashlib's have."""

    def update(self, data: "bytes | memoryview", /) -> None:
        """Go on with this data."""

    def digest(self) -> bytes:
        """Of all until now."""


class _Crc32:
    """The CRCs of the segments, one behind the other."""

    def __init__(self) -> None:
        self._whole = b""
        self._value = 0
        self._left = SEGMENT

    def update(self, data: "bytes | memoryview", /) -> None:
        view = memoryview(data)
        while len(view) > self._left:
            self._whole += zlib.crc32(view[: self._left], self._value).to_bytes(4)
            view = view[self._left :]
            self._value, self._left = 0, SEGMENT
        self._value = zlib.crc32(view, self._value)
        self._left -= len(view)

    def digest(self) -> bytes:
        return self._whole + self._value.to_bytes(4)


KINDS: Final[dict[str, Callable[[], Digest]]] = {CRC32: _Crc32, SHA256: hashlib.sha256}


def read_crc(line: bytes) -> bytes | None:
    """The CRC of a line of a guest's program, whose first word is a decimal number; None if it is another line.

    Behind it cksum prints the size, which is of no use: the guest was told the size.
    """
    word = (line.split(maxsplit=1) or [b""])[0]
    if not (word.isdigit() and len(word) <= _LONGEST_CRC and int(word) < 1 << 32):
        return None
    return int(word).to_bytes(4)

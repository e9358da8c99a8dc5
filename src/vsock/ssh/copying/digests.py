"""Digests by which both sides of a copy compare a file: SHA-256, and a CRC where a guest computes it sooner.

They find errors. A guest that lies about its file would lie about any digest of it.
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["CRC32", "KINDS", "SHA256", "Digest", "read_crc"]

CRC32: Final = "crc32"
SHA256: Final = "sha256"
_LONGEST_CRC: Final = 10


class Digest(Protocol):
    """What hashlib's have."""

    def update(self, data: "bytes | memoryview", /) -> None:
        """Go on with this data."""

    def digest(self) -> bytes:
        """Of all until now."""


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: "bytes | memoryview", /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4)


KINDS: Final[dict[str, Callable[[], Digest]]] = {CRC32: _Crc32, SHA256: hashlib.sha256}


def read_crc(said: bytes) -> bytes | None:
    """The CRC that a program prints first, as a decimal number; None if it has printed something else."""
    word = said.partition(b"\n")[0].partition(b" ")[0]
    if not (word.isdigit() and len(word) <= _LONGEST_CRC and int(word) < 1 << 32):
        return None
    return int(word).to_bytes(4)

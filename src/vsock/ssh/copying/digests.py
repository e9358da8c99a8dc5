"""Digests by which both sides of a copy compare a file: SHA-256, and a CRC where a guest computes it sooner.

They find errors. A guest that lies about its file would lie about any digest of it.
"""

import hashlib
import zlib
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["CRC32", "KINDS", "SHA256", "Digest", "read_digest"]

CRC32: Final = "crc32"
SHA256: Final = "sha256"


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


def read_digest(kind: str, said: bytes) -> bytes:
    """The digest that a program prints first: `cksum` a decimal number, `sha256sum` a hexadecimal one.

    Raises:
        ValueError: it has printed something else.
    """
    word = said.split(maxsplit=1)[0].decode("ascii") if said.strip() else ""
    if kind == CRC32 and word.isdecimal() and len(word) <= 10 and int(word) < 1 << 32:
        return int(word).to_bytes(4)
    if kind == SHA256 and len(word) == 64:
        return bytes.fromhex(word)
    raise ValueError(f"no {kind}")

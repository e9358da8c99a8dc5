"""Reads cpio archives, as a kernel does with an initramfs."""

from collections.abc import Iterator
from pathlib import Path


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents in a cpio archive ("newc")."""
    data = archive.read_bytes()
    at = 0
    while True:
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        begin = (at + 110 + length + 3) & ~3
        if name == "TRAILER!!!":
            return
        yield name, data[begin : begin + size]
        at = (begin + size + 3) & ~3

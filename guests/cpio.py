"""Writes a cpio archive in the format "newc", which a Linux kernel accepts as initramfs.

The archive is written by hand so that it can contain device nodes without root, has the same bytes in
every run, and needs no cpio program. The format is in Documentation/driver-api/early-userspace/
buffer-format.rst of the Linux sources.
"""

import stat
from pathlib import Path
from typing import BinaryIO


class CpioWriter:
    """Adds entries to an archive, and their missing parent folders."""

    def __init__(self, out: BinaryIO) -> None:
        """Write to `out`; the caller closes it."""
        self._out = out
        self._inode = 0
        self._paths: set[str] = set()

    def folder(self, path: str) -> None:
        """Add a folder, once."""
        if path and path not in self._paths:
            self._parents(path)
            self._entry(path, stat.S_IFDIR | 0o755, b"")

    def data(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file with `content`."""
        self._parents(path)
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def file(self, path: str, source: Path) -> None:
        """Add a copy of the file `source`; of its mode only the execute bit is kept."""
        executable = bool(source.stat().st_mode & 0o100)
        self.data(path, source.read_bytes(), executable=executable)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._parents(path)
        self._entry(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def close(self) -> None:
        """Write the end of the archive; without it the kernel reports a broken one."""
        self._entry("TRAILER!!!", 0, b"")

    def _parents(self, path: str) -> None:
        head, slash, _ = path.rpartition("/")
        if slash:
            self.folder(head)

    def _entry(
        self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        self._paths.add(path)
        self._inode += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode mode uid gid links mtime size major minor rmajor rminor namesize check
        fields = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        self._out.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))

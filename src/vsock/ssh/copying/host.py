"""The host's files, for a copy. Each name is used in the descriptor of its folder, and no link is followed.

So whatever a guest names, and whatever is renamed meanwhile, nothing outside a copied folder is read or written.
"""

import asyncio
import fcntl
import os
import secrets
import stat
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from vsock.ssh.copying.digests import KINDS, SHA256
from vsock.ssh.copying.in_use import InUse
from vsock.ssh.copying.sides import (
    CHUNK,
    Entry,
    EntryError,
    Kind,
    Written,
    part_name,
    shown,
)
from vsock.ssh.copying.streams import STREAM_FROM

__all__ = ["HostSide", "has_large_file"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINK: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_NS: Final = 1_000_000_000
_PIECE: Final = 1 << 20
_BLOCK: Final = 512
"""Bytes of st_blocks's unit."""


def _entry(found: os.stat_result) -> Entry:
    return Entry.of(found.st_mode, found.st_size, found.st_mtime)


@contextmanager
def _trouble(text: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EntryError(f"{text}: {error.strerror or error}") from error


class HostSide:
    """The files of this machine."""

    def text(self, path: bytes) -> str:
        """The path."""
        return shown(path or b".")

    async def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        """What is there."""
        with _trouble(self.text(path)):
            try:
                return _entry(os.stat(path or b".", follow_symlinks=follow))  # noqa: PTH116 - paths are bytes
            except FileNotFoundError:
                return None

    async def folder(self, path: bytes) -> "HostFolder":
        """Open a folder, whose path the user has named."""
        with _trouble(self.text(path)):
            return HostFolder(os.open(path or b".", _FOLDER), path)


def has_large_file(paths: Iterable[bytes]) -> bool:
    """Whether one of these is a file that passes as a stream; those in folders are not looked for."""
    for path in paths:
        with suppress(OSError):  # is told when it is copied
            found = os.stat(path or b".")  # noqa: PTH116 - paths are bytes
            if stat.S_ISREG(found.st_mode) and found.st_size >= STREAM_FROM:
                return True
    return False


class HostFolder:
    """A folder, by its descriptor."""

    def __init__(self, descriptor: int, path: bytes) -> None:
        self._descriptor = descriptor
        self._file = InUse(descriptor, os.close)
        self._path = path

    def text(self, name: bytes) -> str:
        """The path of an entry."""
        return shown(os.path.join(self._path, name))  # noqa: PTH118 - paths are bytes

    async def entries(self) -> AsyncGenerator[tuple[bytes, Entry], None]:
        """What is in it; what vanishes meanwhile is not."""
        with _trouble(self.text(b"")), os.scandir(self._descriptor) as found:
            for one in found:
                with suppress(FileNotFoundError):
                    yield os.fsencode(one.name), _entry(one.stat(follow_symlinks=False))

    async def entry(self, name: bytes) -> Entry | None:
        """What is there."""
        with _trouble(self.text(name)):
            try:
                return _entry(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))
            except FileNotFoundError:
                return None

    async def folder(self, name: bytes) -> "HostFolder":
        """Open a folder."""
        text = self.text(name)
        with _trouble(text):
            path = os.path.join(self._path, name)  # noqa: PTH118
            return HostFolder(
                os.open(name, _FOLDER | _NO_LINK, dir_fd=self._descriptor),
                path,
            )

    async def make_folder(self, name: bytes) -> None:
        """Make a folder."""
        with _trouble(self.text(name)):
            os.mkdir(name, 0o700, dir_fd=self._descriptor)

    async def read_link(self, name: bytes) -> bytes:
        """What a link says."""
        with _trouble(self.text(name)):
            return os.readlink(name, dir_fd=self._descriptor)

    async def make_link(self, name: bytes, target: bytes, entry: Entry) -> None:
        """Make a link under a temporary name, and rename it."""
        here = self._descriptor
        part = part_name(name, secrets.token_hex(6))
        with _trouble(self.text(name)):
            os.symlink(target, part, dir_fd=here)
            try:
                times = (int(entry.seconds * _NS),) * 2
                os.utime(part, ns=times, dir_fd=here, follow_symlinks=False)
                os.rename(part, name, src_dir_fd=here, dst_dir_fd=here)
            except OSError:
                os.unlink(part, dir_fd=here)
                raise

    async def reader(self, name: bytes) -> "HostReader":
        """Open a file; whatever else has the name by now is trouble."""
        text = self.text(name)
        with _trouble(text):
            # O_NONBLOCK: a FIFO that has taken the file's place must not stop us.
            flags = os.O_RDONLY | os.O_NONBLOCK | _NO_LINK
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
            reader = HostReader(descriptor, text)
        if reader.entry.kind is not Kind.FILE:
            await reader.close()
            raise EntryError(f"{text}: became a {reader.entry.kind.value} during the copy")
        return reader

    async def writer(self, name: bytes, tag: str, *, resume: bool) -> "HostWriter":
        """Begin a file, or go on with a part of it."""
        text = self.text(name)
        part = part_name(name, tag)
        there = await self.entry(part)
        if there and not resume:
            # Perhaps another copy of the same file is at work, so it stays.
            part, there = part_name(name, secrets.token_hex(6)), None
        with _trouble(text):
            flags = os.O_RDWR | _NO_LINK | (0 if there else os.O_CREAT | os.O_EXCL)
            descriptor = os.open(part, flags | os.O_NONBLOCK, 0o600, dir_fd=self._descriptor)
        try:
            found = os.fstat(descriptor)
            is_ours = found.st_uid == os.geteuid() and found.st_nlink == 1
            if not (stat.S_ISREG(found.st_mode) and is_ours):
                raise EntryError(f"{self.text(part)}: is not a part that `vsock cp` has left")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EntryError(f"{text}: another `vsock cp` is writing it") from None
            if not self._has(part, found):
                raise EntryError(f"{text}: another `vsock cp` has written it meanwhile")
            return HostWriter(descriptor, self._descriptor, part, name, text)
        except BaseException:
            os.close(descriptor)
            raise

    def _has(self, part: bytes, found: os.stat_result) -> bool:
        """Whether that name is still of this file: who had it locked before may have renamed it."""
        try:
            return os.path.samestat(found, os.lstat(part, dir_fd=self._descriptor))
        except FileNotFoundError:
            return False

    async def finish(self, entry: Entry | None) -> None:
        """Mode and time of a new folder, and its names onto the disk."""
        with _trouble(self.text(b"")):
            await asyncio.to_thread(_sync, self._file)
            if entry:
                os.fchmod(self._descriptor, entry.mode)
                os.utime(self._descriptor, ns=(int(entry.seconds * _NS),) * 2)

    async def close(self) -> None:
        """Close the descriptor."""
        self._file.close()


class HostReader:
    """A file that is read."""

    def __init__(self, descriptor: int, text: str) -> None:
        self._file = InUse(descriptor, os.close)
        self._text = text
        found = os.fstat(descriptor)
        self.entry = _entry(found)
        has_holes = found.st_blocks * _BLOCK < found.st_size
        self.file = None if has_holes else self._file

    async def stream(self, begin: int, *, verify: bool) -> None:
        """Only guests have streams."""

    async def read(self, offset: int, size: int) -> bytes:
        """Read at an offset."""
        with _trouble(self._text):
            return await asyncio.to_thread(self._read, offset, size)

    def _read(self, offset: int, size: int) -> bytes:
        with self._file as descriptor:
            return os.pread(descriptor, size, offset)

    async def now(self) -> Entry:
        """What it is by now."""
        with self._file as descriptor:
            return _entry(os.fstat(descriptor))

    async def digest(self, length: int, kind: str = SHA256) -> bytes:
        """A digest of its first bytes."""
        with _trouble(self._text):
            return await _digest(self._file, length, kind)

    async def close(self) -> None:
        """Close it."""
        self._file.close()


class HostWriter:
    """A file under a temporary name; `folder` is a descriptor that outlives it."""

    def __init__(self, descriptor: int, folder: int, part: bytes, name: bytes, text: str) -> None:
        self._file = InUse(descriptor, os.close)
        self._folder = folder
        self._part = part
        self._name = name
        self._text = text
        self.begun = os.fstat(descriptor).st_size

    async def stream(self, begin: int, size: int, *, verify: bool) -> None:
        """Only guests have streams."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Write at an offset."""
        with _trouble(self._text):
            await asyncio.to_thread(self._write, offset, data)

    def _write(self, offset: int, data: memoryview) -> None:
        # Not more at once: ext4 takes as large folios as the write, and those are memory that no processor has cached.
        with self._file as descriptor:
            while data and not self._file.is_closed:
                written = os.pwrite(descriptor, data[:CHUNK], offset)
                offset, data = offset + written, data[written:]

    async def truncate(self, size: int) -> None:
        """Cut or extend it."""
        with _trouble(self._text), self._file as descriptor:
            os.ftruncate(descriptor, size)

    async def digest(
        self, length: int, kind: str = SHA256, written: Written | None = None
    ) -> bytes:
        """A digest of its first bytes, as soon as they are written."""
        with _trouble(self._text):
            return await _digest(self._file, length, kind, written)

    async def place(self, entry: Entry) -> None:
        """Finish it, and rename it."""
        with _trouble(self._text):
            with self._file as descriptor:
                os.fchmod(descriptor, entry.mode)
                os.utime(descriptor, ns=(int(entry.seconds * _NS),) * 2)
            await asyncio.to_thread(_sync, self._file)
            os.rename(self._part, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    async def discard(self) -> None:
        """Remove it."""
        with _trouble(self._text):
            os.unlink(self._part, dir_fd=self._folder)

    async def close(self) -> None:
        """Close it. A thread that still writes a piece does not keep the next copy from it."""
        if not self._file.is_closed:
            with self._file as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._file.close()


def _sync(file: InUse[int]) -> None:
    with file as descriptor:
        os.fsync(descriptor)


async def _digest(
    file: InUse[int], length: int, kind: str, written: Written | None = None
) -> bytes:
    """A digest of the first bytes of a file; of all if there are fewer."""
    hashed, at = KINDS[kind](), 0
    buffer = memoryview(bytearray(min(_PIECE, length)))

    def go_on(count: int) -> int:
        with file as descriptor:
            count = os.preadv(descriptor, [buffer[:count]], at)
        hashed.update(buffer[:count])
        return count

    while at < length:
        most = min(_PIECE, length - at)
        size = await written.after(at, most) if written else most
        if not (count := await asyncio.to_thread(go_on, size)):
            break
        at += count
    return hashed.digest()

"""What a copy needs of a side, be it the host or a guest: folders, readers, writers, and what an entry of a folder is.

Names and paths are bytes, as in the kernels of both sides.
"""

import asyncio
import stat
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, Self

from vsock.ssh.copying.digests import KINDS, SHA256
from vsock.ssh.copying.in_use import InUse

__all__ = [
    "AT_ONCE",
    "CHUNK",
    "WINDOW",
    "Entry",
    "EntryError",
    "Folder",
    "Kind",
    "PartLeftError",
    "Progress",
    "Reader",
    "Side",
    "Stream",
    "Writer",
    "Written",
    "cancel",
    "digest_of",
    "part_name",
    "read_all",
    "shown",
    "written_runs",
]

CHUNK: Final = 128 << 10
"""Bytes of a read or write; OpenSSH's sftp-server takes 255 KiB, asyncssh's client asks what a server takes."""

WINDOW: Final = 1 << 20
"""Bytes that are on their way at once in each direction. So all of a part but its last bytes, as many as these, is whole."""

AT_ONCE: Final = WINDOW // CHUNK
"""Reads or writes of a window."""

_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)
_LONGEST_NAME: Final = 255
"""NAME_MAX of Linux."""


class EntryError(Exception):
    """A file, link or folder is not copied; the text is one line with the side at fault. The others go on."""


class PartLeftError(EntryError):
    """A file is not copied, and what came of it stays as its part, with which another copy goes on."""


class Kind(Enum):
    """What an entry of a folder is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    FIFO = "FIFO"
    SOCKET = "socket"
    DEVICE = "device"


_KINDS: Final = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.FOLDER,
    stat.S_IFLNK: Kind.LINK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a folder; `seconds` is when it was last changed, `mode` has only the nine bits of chmod(1).

    Set-user-ID and the like are not kept: they would be another user's on the other side.
    """

    kind: Kind
    size: int
    mode: int
    seconds: float

    @classmethod
    def of(cls, mode: int, size: int, seconds: float) -> Self:
        """The entry of a struct stat."""
        return cls(_KINDS.get(stat.S_IFMT(mode), Kind.DEVICE), size, mode & 0o777, seconds)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy is; `total` is 0 while it is not known, `over_ssh` says whether ssh carries the data."""

    path: str
    files: int
    bytes: int
    total: int
    over_ssh: bool = False


class Reader(Protocol):
    """A file that is read; `file` is the descriptor of a file of the host which has no holes, else None."""

    entry: Entry
    file: InUse[int] | None

    async def stream(self, begin: int, *, verify: bool) -> "Stream | None":
        """A plain stream of a guest's file from an offset; None if there is none."""

    async def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; none at the end of the file."""

    async def now(self) -> Entry:
        """What it is by now."""

    async def digest(self, length: int, kind: str = SHA256) -> bytes:
        """A digest of its first bytes."""

    async def close(self) -> None:
        """Needs no answer of a guest whose session has ended."""


class Stream(Protocol):
    """The data of one file without requests."""

    async def send(self, file: InUse[int], offset: int, size: int) -> int:
        """Send from a file of the host; returns how many bytes, none at its end."""

    async def receive(self, buffer: memoryview) -> None:
        """Receive until the buffer is full."""

    async def crc(self, length: int) -> bytes:
        """The CRCs of the guest's file, which has this length, after the last byte; of no use if unverified."""

    def end(self) -> None:
        """The file was not copied to its end: nothing more can pass."""


class Writer(Protocol):
    """A file under its temporary name; `begun` is how long it was when it was opened."""

    begun: int

    async def stream(self, begin: int, size: int, *, verify: bool) -> Stream | None:
        """A plain stream into a guest's file, from an offset to its end; None if there is none."""

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of it."""

    async def truncate(self, size: int) -> None:
        """Cut or extend it; what is not written is zeros."""

    async def digest(
        self, length: int, kind: str = SHA256, written: "Written | None" = None
    ) -> bytes:
        """A digest of its first bytes, read again; with `written`, as soon as they are written."""

    async def place(self, entry: Entry) -> None:
        """Give it mode and time, see it onto the disk, and give it its name in place of what has it."""

    async def discard(self) -> None:
        """Remove it."""

    async def close(self) -> None:
        """Leave it, if it has no other name yet. Needs no answer of a guest whose session has ended."""


class Written:
    """How far a file is written, for those who wait for it."""

    def __init__(self) -> None:
        self._end = 0
        self._more = asyncio.Event()

    def until(self, end: int) -> None:
        """All before this is written."""
        self._end = end
        self._more.set()

    async def after(self, begin: int, most: int) -> int:
        """Wait for bytes after an offset, and return how many there are, `most` at most."""
        while self._end <= begin:
            self._more.clear()
            await self._more.wait()
        return min(most, self._end - begin)


class Folder(Protocol):
    """A folder; what its methods take is a name in it, and links are not followed."""

    def text(self, name: bytes) -> str:
        """The path of an entry, for people, with the side."""

    def entries(self) -> AsyncGenerator[tuple[bytes, Entry], None]:
        """What is in it, without `.` and `..`; a name may be anything."""

    async def entry(self, name: bytes) -> Entry | None:
        """What is there; None if nothing is."""

    async def folder(self, name: bytes) -> "Folder":
        """Open a folder."""

    async def make_folder(self, name: bytes) -> None:
        """Make a folder that only its owner may use."""

    async def read_link(self, name: bytes) -> bytes:
        """What a link says."""

    async def make_link(self, name: bytes, target: bytes, entry: Entry) -> None:
        """Make a link, in place of a file or link of that name."""

    async def reader(self, name: bytes) -> Reader:
        """Open a file to read it."""

    async def writer(self, name: bytes, tag: str, *, resume: bool) -> Writer:
        """Begin a file, or go on with the part of it that has this tag."""

    async def finish(self, entry: Entry | None) -> None:
        """Give the folder its mode and time, if it is new, and see its names onto the disk."""

    async def close(self) -> None:
        """Let it go."""


class Side(Protocol):
    """A file system, by paths that a user has named; there links are followed, but for the last name."""

    def text(self, path: bytes) -> str:
        """A path for people, with the side."""

    async def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        """What is there; None if nothing is."""

    async def folder(self, path: bytes) -> Folder:
        """Open a folder; the empty path is the directory where one begins."""


def written_runs(data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """The pieces of `data` that have to be written in a file that is zeros: offset and bytes."""
    view = memoryview(data)
    begin = None
    for at in range(0, len(data), _BLOCK):
        piece = view[at : at + _BLOCK]
        if piece == _ZEROS[: len(piece)]:
            if begin is not None:
                yield begin, view[begin:at]
            begin = None
        elif begin is None:
            begin = at
    if begin is not None:
        yield begin, view[begin:]


def part_name(name: bytes, tag: str) -> bytes:
    """The temporary name of a file; as long as a name may be at most."""
    end = f".{tag}.part".encode()
    return b"." + name[: _LONGEST_NAME - 1 - len(end)] + end


def shown(path: bytes) -> str:
    """A path in one line for people; what cannot be printed is escaped, and much of it is cut."""
    text = path[:4096].decode(errors="backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


async def digest_of(
    read: Callable[[int, int], Awaitable[bytes]], length: int, kind: str = SHA256
) -> bytes:
    """A digest of the first bytes of a file, by reading them, a window ahead; of all if there are fewer."""
    hashed = KINDS[kind]()
    ahead: deque[asyncio.Task[bytes]] = deque()
    asked = 0
    try:
        while asked < length or ahead:
            while asked < length and len(ahead) < AT_ONCE:
                size = min(CHUNK, length - asked)
                ahead.append(asyncio.create_task(read_all(read, asked, size)))
                asked += size
            data = await ahead.popleft()
            hashed.update(data)
            if not data:
                break
    finally:
        await cancel(ahead)
    return hashed.digest()


async def read_all(read: Callable[[int, int], Awaitable[bytes]], offset: int, length: int) -> bytes:
    """Read so much, however short single answers are; less at the end of the file."""
    data = await read(offset, length)
    if not data or len(data) == length:
        return data
    pieces = bytearray(data)
    while len(pieces) < length and (data := await read(offset + len(pieces), length - len(pieces))):
        pieces += data
    return bytes(pieces)


async def cancel(tasks: "deque[asyncio.Task[bytes]] | deque[asyncio.Task[None]]") -> None:
    """End reads or writes whose results nobody wants any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Copies what a user names, as cp(1) does: into a folder that exists, else under the name; folders with all in them.

A file, link or folder that fails does not stop the others; the result has a line for each.
"""

import asyncio
import os
import posixpath
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from vsock.errors import UsageError
from vsock.ssh.attached import in_thread
from vsock.ssh.copying.guest import GuestSide
from vsock.ssh.copying.sides import CHUNK, WINDOW, Entry, EntryError, Folder, Kind, Progress, Side
from vsock.ssh.copying.transfer import copy_file, copy_stream, read_in_order

__all__ = ["MOST_ENTRIES", "Copier", "CopyResult", "Place"]

MOST_ENTRIES: Final = 1_000_000
"""Files, folders and links of one copy, so that a guest whose listing has no end does not fill the disk with names."""

FILES_AT_ONCE: Final = 32
"""Small files that are on their way at once: each needs several answers of the guest, one after the other."""

_SLOT: Final = WINDOW // FILES_AT_ONCE
"""Bytes of a small file that count as one of those; so all of them together are no more than a window."""

_DEEPEST: Final = 100
"""Folders within folders; each takes a descriptor."""

MOST_FOLDERS_WAITING: Final = 50_000
"""Folders that were listed and are not yet copied, on all levels together: their names are kept meanwhile."""

_LONGEST_NAME: Final = 255
"""NAME_MAX of Linux."""

_MOST_FAILURES: Final = 1000
"""Lines that are kept; more are only counted."""

_PROGRESS_SECONDS: Final = 0.1
_STREAM: Final = "-"
_UMASK_FREE: Final = 0o644
_ITSELF: Final = (b"", b".", b"..")


@dataclass(frozen=True, slots=True)
class Place:
    """What a user names: a path of a guest, or of the host if `guest` is None, or a standard stream."""

    guest: str | None
    path: bytes
    is_stream: bool = False

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Read `NAME:PATH`, a local path, or `-`. A local path with a colon needs a slash before it: `./a:b`.

        Raises:
            UsageError: nothing is named, or what no path can be.
        """
        if text == _STREAM:
            return cls(None, b"", is_stream=True)
        if "\0" in text or not text:
            raise UsageError(f"{text!r} is no path")
        name, colon, path = text.partition(":")
        if not colon or "/" in name:
            return cls(None, os.fsencode(text))
        if not name:
            raise UsageError(f"{text}: no guest before the colon; a local file is ./{text}")
        return cls(name, os.fsencode(path))


@dataclass(frozen=True, slots=True)
class CopyResult:
    """What was copied.

    Attributes:
        files: how many files.
        folders: how many folders; those that were there already count too.
        links: how many links.
        bytes: of files, with those that an earlier, broken copy had brought.
        seconds: how long it took.
        failed: how many files, links and folders were not copied.
        failures: a line for each, with the side at fault; of the first thousand.
        notes: what the guest's SFTP server could not do.
        over_ssh: a line for each guest whose data ssh carried instead of a plain vsock connection, with the reason.
    """

    files: int
    folders: int
    links: int
    bytes: int
    seconds: float
    failed: int
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    over_ssh: tuple[str, ...]


class Copier:
    """Copies once or several times; `result` is of all of them.

    Args:
        resume: go on with what a broken copy of the same file has left.
        verify: compare each file with what was read.
        progress: called a few times in a second.
        most_entries: as `MOST_ENTRIES`.
    """

    def __init__(
        self,
        *,
        resume: bool = False,
        verify: bool = True,
        progress: Callable[[Progress], object] | None = None,
        most_entries: int = MOST_ENTRIES,
    ) -> None:
        self._resume = resume
        self._verify = verify
        self._progress = progress
        self._most_entries = most_entries
        self._seen = 0
        self._folders_waiting = 0
        self._counts = dict.fromkeys((Kind.FILE, Kind.FOLDER, Kind.LINK), 0)
        self._bytes = self._total = 0
        self._failures: list[str] = []
        self._failed = 0
        self._begun = time.monotonic()
        self._told = 0.0
        self._path = ""
        self._over_ssh = False
        self._slots = asyncio.Semaphore(FILES_AT_ONCE)
        self._large = asyncio.Lock()

    def result(self, *sides: Side) -> CopyResult:
        """What was copied until now; `sides` are those that may have notes."""
        guests = [side for side in sides if isinstance(side, GuestSide)]
        notes = {note for guest in guests for note in guest.notes}
        return CopyResult(
            files=self._counts[Kind.FILE],
            folders=self._counts[Kind.FOLDER],
            links=self._counts[Kind.LINK],
            bytes=self._bytes,
            seconds=round(time.monotonic() - self._begun, 3),
            failed=self._failed,
            failures=tuple(self._failures),
            notes=tuple(sorted(notes)),
            over_ssh=tuple(f"{one.name}: {one.over_ssh}" for one in guests if one.over_ssh),
        )

    async def copy(self, sources: Sequence[tuple[Side, bytes]], target: Side, path: bytes) -> None:
        """Copy into a folder, or one source to a name.

        Raises:
            SessionError: a session ended; `result` says what was copied before.
            UsageError: several sources, and no folder for them.
        """
        self._note_carriers(target, *(side for side, _ in sources))
        try:
            there = await target.entry(path, follow=True)
        except EntryError as error:
            self._fail(error)
            return
        into = there is not None and there.kind is Kind.FOLDER
        if len(sources) > 1 and not into:
            raise UsageError(f"{target.text(path)} is no folder, and there are several sources")
        if self._progress:
            for side, source in sources:
                await self._measure_named(side, source)
        for side, source in sources:
            try:
                await self._named(side, source, target, path, into=into)
            except EntryError as error:
                self._fail(error)

    async def from_stream(self, pieces: AsyncIterator[bytes], target: Side, path: bytes) -> None:
        """Copy a stream to a file."""
        self._note_carriers(target)
        try:
            there = await target.entry(path, follow=True)
            if path.endswith(b"/") or (there and there.kind is Kind.FOLDER):
                raise EntryError(f"{target.text(path)}: is a folder: name the file")
            entry = Entry(Kind.FILE, 0, there.mode if there else _UMASK_FREE, time.time())
            folder, name = await self._parent(target, path)
            try:
                await self._free(folder, name)
                self._path = folder.text(name)
                tag = secrets.token_hex(6)
                rest = {"entry": entry, "verify": self._verify, "came": self._came}
                await copy_stream(pieces, folder, name, tag, **rest)  # type: ignore[arg-type]
                self._counts[Kind.FILE] += 1
            finally:
                await folder.close()
        except EntryError as error:
            self._fail(error)

    async def to_stream(self, side: Side, path: bytes, write: Callable[[bytes], object]) -> None:
        """Copy a file to a stream; `write` is called in a thread."""
        self._note_carriers(side)
        try:
            folder, name = await self._parent(side, path)
            try:
                self._path = folder.text(name)
                reader = await folder.reader(name)
                try:
                    self._total = reader.entry.size
                    async with aclosing(read_in_order(reader, 0, self._path)) as pieces:
                        async for data in pieces:
                            await in_thread(write, data)
                            self._came(len(data))
                    self._counts[Kind.FILE] += 1
                finally:
                    await reader.close()
            finally:
                await folder.close()
        except EntryError as error:
            self._fail(error)

    async def _named(
        self, side: Side, path: bytes, target: Side, target_path: bytes, *, into: bool
    ) -> None:
        entry = await side.entry(path, follow=path.endswith(b"/"))
        if entry is None:
            raise EntryError(f"{side.text(path)}: no such file or folder")
        if entry.kind is Kind.FOLDER:
            await _refuse_within_itself(side, path, target, target_path)
        name = posixpath.basename(path.rstrip(b"/"))
        if name in _ITSELF and into:
            # `alpha:dir/.`: what is in it, into the folder that is there
            source, folder = await side.folder(path), await target.folder(target_path)
            try:
                await self._contents(source, folder, 0)
                await folder.finish(None)
            finally:
                await folder.close()
                await source.close()
            return
        if not into and target_path.endswith(b"/") and entry.kind is not Kind.FOLDER:
            raise EntryError(f"{target.text(target_path)}: no such folder")
        if into:
            folder, new_name = await target.folder(target_path), name
        else:
            folder, new_name = await self._parent(target, target_path)
        try:
            if entry.kind is Kind.FOLDER:
                await self._folder(side.folder(path), entry, folder, new_name, 0)
            else:
                source, name = await self._parent(side, path)
                try:
                    await self._entry(source, name, entry, folder, new_name, 0)
                finally:
                    await source.close()
            await folder.finish(None)
        finally:
            await folder.close()

    async def _parent(self, side: Side, path: bytes) -> tuple[Folder, bytes]:
        head, name = posixpath.split(path.rstrip(b"/"))
        if name in _ITSELF:
            raise EntryError(f"{side.text(path)}: names no file")
        return await side.folder(head), name

    async def _contents(
        self, source: Folder, target: Folder, depth: int, *, is_new: bool = False
    ) -> None:
        """Copy what is in a folder; an entry that fails does not stop the others.

        Small files are copied at once with others; what is not yet done at the end is waited for. Folders are copied
        when the listing is at its end: one that stays open keeps an answer of the guest, and that on each level.
        """
        listing_error: EntryError | None = None
        folders: deque[tuple[bytes, Entry]] = deque()
        try:
            async with _together() as others:
                try:
                    async with aclosing(source.entries()) as entries:
                        async for name, entry in entries:
                            self._count_entry(source)
                            if not _is_name(name):
                                line = f"{source.text(b'')}: lists {name[:300]!r}, which is no name"
                                self._fail(EntryError(line))
                            elif entry.kind is Kind.FOLDER:
                                self._count_waiting(source)
                                folders.append((name, entry))
                            elif entry.kind is Kind.FILE and entry.size <= CHUNK:
                                slots = 1 + entry.size // _SLOT
                                for _ in range(slots):
                                    await self._slots.acquire()
                                others.create_task(
                                    self._small(slots, source, name, entry, target, depth, is_new)
                                )
                            else:
                                await self._try_entry(source, name, entry, target, depth, is_new)
                except EntryError as error:
                    listing_error = error
                while folders and self._seen <= self._most_entries:
                    name, entry = folders.popleft()
                    self._folders_waiting -= 1
                    await self._try_entry(source, name, entry, target, depth, is_new)
        finally:
            self._folders_waiting -= len(folders)
        if listing_error:
            raise listing_error

    def _count_entry(self, source: Folder) -> None:
        self._seen += 1
        if self._seen > self._most_entries:
            raise EntryError(
                f"{source.text(b'')}: more than {self._most_entries} entries: the rest is not copied"
            )

    def _count_waiting(self, source: Folder) -> None:
        if self._folders_waiting == MOST_FOLDERS_WAITING:
            raise EntryError(
                f"{source.text(b'')}: more than {MOST_FOLDERS_WAITING} folders: the rest is not copied"
            )
        self._folders_waiting += 1

    async def _small(
        self,
        slots: int,
        source: Folder,
        name: bytes,
        entry: Entry,
        target: Folder,
        depth: int,
        is_new: bool,
    ) -> None:
        try:
            await self._try_entry(source, name, entry, target, depth, is_new)
        finally:
            for _ in range(slots):
                self._slots.release()

    async def _try_entry(
        self,
        source: Folder,
        name: bytes,
        entry: Entry,
        target: Folder,
        depth: int,
        is_new: bool,
    ) -> None:
        """Copy an entry; one that fails does not stop the others."""
        try:
            await self._entry(source, name, entry, target, name, depth, is_new)
        except EntryError as error:
            self._fail(error)

    async def _entry(
        self,
        source: Folder,
        name: bytes,
        entry: Entry,
        target: Folder,
        new_name: bytes,
        depth: int,
        is_new: bool = False,
    ) -> None:
        """Copy an entry; `is_new` says that the target is a folder of this copy, with nothing in it that could stay."""
        self._path = source.text(name)
        if entry.kind in (Kind.FILE, Kind.LINK) and not is_new:
            await self._free(target, new_name)
        if entry.kind is Kind.FILE:
            await self._file(source, name, target, new_name)
        elif entry.kind is Kind.LINK:
            await target.make_link(new_name, await source.read_link(name), entry)
        elif entry.kind is Kind.FOLDER:
            if depth == _DEEPEST:
                raise EntryError(f"{self._path}: more than {_DEEPEST} folders within each other")
            await self._folder(source.folder(name), entry, target, new_name, depth + 1)
            return
        else:
            raise EntryError(
                f"{self._path}: is a {entry.kind.value}; only files, folders and links are copied"
            )
        self._counts[entry.kind] += 1

    async def _file(self, source: Folder, name: bytes, target: Folder, new_name: bytes) -> None:
        count = 0

        def came(more: int) -> None:
            nonlocal count
            count += more
            self._came(more)

        try:
            await copy_file(
                source,
                name,
                target,
                new_name,
                resume=self._resume,
                verify=self._verify,
                came=came,
                large=self._large,
            )
        except EntryError:
            self._bytes -= count
            raise

    async def _folder(
        self,
        opening: Coroutine[Any, Any, Folder],
        entry: Entry,
        target: Folder,
        new_name: bytes,
        depth: int,
    ) -> None:
        source = await opening
        try:
            is_new = await self._make(target, new_name)
            here = await target.folder(new_name)
            try:
                await self._contents(source, here, depth, is_new=is_new)
                await here.finish(entry if is_new else None)
            finally:
                await here.close()
        finally:
            await source.close()

    async def _make(self, target: Folder, name: bytes) -> bool:
        """Make a folder, if there is none; tell whether it is new."""
        found = await target.entry(name)
        if found and found.kind is not Kind.FOLDER:
            raise EntryError(
                f"{target.text(name)}: is a {found.kind.value} where a folder would be"
            )
        if not found:
            await target.make_folder(name)
        self._counts[Kind.FOLDER] += 1
        return not found

    async def _free(self, target: Folder, name: bytes) -> None:
        """A file or link may take the place only of another one."""
        found = await target.entry(name)
        if found and found.kind not in (Kind.FILE, Kind.LINK):
            raise EntryError(f"{target.text(name)}: is a {found.kind.value}, and stays as it is")

    async def _measure_named(self, side: Side, path: bytes) -> None:
        """Add up sizes, for the progress; what cannot be read is reported when it is copied."""
        try:
            found = await side.entry(path, follow=path.endswith(b"/"))
            if found and found.kind is Kind.FOLDER:
                folder = await side.folder(path)
                try:
                    await self._measure(folder, [self._most_entries], 0)
                finally:
                    await folder.close()
            elif found and found.kind is Kind.FILE:
                self._total += found.size
        except EntryError:
            return

    async def _measure(self, folder: Folder, left: list[int], depth: int) -> None:
        folders: deque[bytes] = deque()
        try:
            async with aclosing(folder.entries()) as entries:
                async for name, entry in entries:
                    left[0] -= 1
                    if left[0] < 0 or self._folders_waiting == MOST_FOLDERS_WAITING:
                        return
                    if entry.kind is Kind.FILE:
                        self._total += entry.size
                    elif entry.kind is Kind.FOLDER and depth < _DEEPEST and _is_name(name):
                        folders.append(name)
                        self._folders_waiting += 1
            while folders:
                name = folders.popleft()
                self._folders_waiting -= 1
                within = await folder.folder(name)
                try:
                    await self._measure(within, left, depth + 1)
                finally:
                    await within.close()
        finally:
            self._folders_waiting -= len(folders)

    def _note_carriers(self, *sides: Side) -> None:
        self._over_ssh = any(isinstance(one, GuestSide) and one.over_ssh for one in sides)

    def _came(self, count: int) -> None:
        self._bytes += count
        now = time.monotonic()
        if self._progress and now - self._told > _PROGRESS_SECONDS:
            self._told = now
            done = self._counts[Kind.FILE]
            self._progress(Progress(self._path, done, self._bytes, self._total, self._over_ssh))

    def _fail(self, error: EntryError) -> None:
        self._failed += 1
        if len(self._failures) < _MOST_FAILURES:
            self._failures.append(str(error))


def _is_name(name: bytes) -> bool:
    return (
        name not in _ITSELF
        and len(name) <= _LONGEST_NAME
        and b"/" not in name
        and b"\0" not in name
    )


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Tasks of which the first error ends all, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


async def _refuse_within_itself(side: Side, path: bytes, target: Side, target_path: bytes) -> None:
    if side is not target or not isinstance(side, GuestSide):
        return
    inner, outer = [await side.real_path(one) for one in (target_path, path)]
    if inner == outer or inner.startswith(outer.rstrip(b"/") + b"/"):
        raise EntryError(f"{side.text(path)}: a folder cannot be copied into itself")

"""A guest's files, for a copy, by SFTP. What the guest answers is checked here; how long it takes is bounded.

Paths are the guest's own matter: it can only deceive itself about them.
"""

import asyncio
import posixpath
import secrets
import shlex
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

import asyncssh
from asyncssh import constants

from vsock.errors import SessionError
from vsock.ssh.copying.connection import GuestConnection, seconds_for
from vsock.ssh.copying.digests import SHA256
from vsock.ssh.copying.in_use import InUse
from vsock.ssh.copying.sftp import plain_sftp, ssh_sftp
from vsock.ssh.copying.sides import (
    CHUNK,
    Entry,
    EntryError,
    Kind,
    Written,
    digest_of,
    part_name,
)
from vsock.ssh.copying.streams import FileStream, GuestStreams, Way
from vsock.ssh.data_connection import DataConnectionError
from vsock.ssh.sftp_server import answering, notes

if TYPE_CHECKING:
    from vsock.ssh.copying.sides import Stream
    from vsock.ssh.session import GuestSession

__all__ = ["GuestSide"]

_FEW: Final = 1 << 20
"""Bytes that are read again rather than compared by sha256sum, whose start costs more."""

_MOST_DOTS: Final = 2
"""A folder lists itself and its parent once."""

_MOST_NUMBER: Final = 2**63 - 1
_LAST_SECOND: Final = 2**32 - 1


class GuestSide:
    """The files of a guest, as its sshd lets a user have them; `notes` says what its server cannot do."""

    def __init__(
        self,
        session: "GuestSession",
        sftp: GuestConnection,
        streams: GuestStreams | None,
        *,
        over_ssh: str | None = None,
    ) -> None:
        self._session = session
        self._streams = streams
        self.name = session.name
        self.sftp = sftp
        self.notes: set[str] = set()
        self.over_ssh = over_ssh
        """Why ssh carries the data; None if a plain connection does."""

    @classmethod
    async def open(
        cls, session: "GuestSession", *, encrypted: bool = False, streams: bool = False
    ) -> "GuestSide":
        """Start an SFTP server in the guest, which is reached over a plain connection, or as part of its sshd over ssh.

        Args:
            session: an open session with the guest.
            encrypted: over ssh in any case.
            streams: begin at once what large files pass by; else it begins with the first one.

        Raises:
            SessionError: it has no SFTP, or the session ended.
        """
        if encrypted:
            return cls(session, await _over_ssh(session), None, over_ssh="it was asked for")
        carriers = GuestStreams(session)
        if streams:
            carriers.begin()
        try:
            data, client = await plain_sftp(session)
        except DataConnectionError as error:
            carriers.end()
            side = cls(session, await _over_ssh(session), None, over_ssh=str(error))
            side.notes.update(notes(side.name, refused=error.refused, is_late=error.is_late))
            return side
        except BaseException:
            carriers.end()
            raise
        side = cls(session, GuestConnection(session, client, data), carriers)
        side.notes.update(notes(side.name, refused=data.refused))
        return side

    async def close(self) -> None:
        """End SFTP, not the session, unless the guest does not answer."""
        if self._streams:
            self._streams.end()
        await self.sftp.close()

    @property
    def chunk(self) -> int:
        """Bytes that one request may carry."""
        limits = self.sftp.client.limits
        return min(CHUNK, limits.max_read_len or CHUNK, limits.max_write_len or CHUNK)

    def text(self, path: bytes) -> str:
        """The path behind the guest's name."""
        return self.sftp.text(path)

    async def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        """What is there."""
        look = self.sftp.client.stat if follow else self.sftp.client.lstat
        try:
            return self.read_entry(await self.sftp.ask(look(path or b"."), path), path)
        except EntryError as error:
            if isinstance(error.__cause__, asyncssh.SFTPNoSuchFile | asyncssh.SFTPNoSuchPath):
                return None
            raise

    async def folder(self, path: bytes) -> "GuestFolder":
        """A folder, whose path the user has named."""
        found = await self.entry(path, follow=True)
        if found is None or found.kind is not Kind.FOLDER:
            raise EntryError(f"{self.text(path)}: {'not a' if found else 'no such'} folder")
        return GuestFolder(self, path)

    async def real_path(self, path: bytes) -> bytes:
        """The path without links."""
        return await self.sftp.ask(self.sftp.client.realpath(path or b"."), path)

    def read_entry(self, said: asyncssh.SFTPAttrs, path: bytes) -> Entry:
        """Check what the guest says of an entry."""
        size, seconds = said.size or 0, said.mtime or 0
        if said.permissions is None or not 0 <= size <= _MOST_NUMBER or seconds > _MOST_NUMBER:
            raise EntryError(f"{self.text(path)}: the guest does not say what it is")
        return Entry.of(said.permissions, size, min(seconds, _LAST_SECOND))

    async def stream(
        self, way: Way, path: bytes, name: bytes, begin: int, length: int, *, verify: bool
    ) -> FileStream | None:
        """A plain stream that carries a part of a file from an offset; None if nothing does. Errors have the name."""
        if not self._streams or b"\n" in path:
            return None
        stream = await self._streams.get()
        if not stream:
            return None
        file = FileStream(self.sftp, self._streams, stream, name)
        await file.order(way, path, begin, length, verify=verify)
        return file

    async def digest(self, path: bytes, length: int, kind: str) -> bytes | None:
        """SHA-256 by the guest's own sha256sum; None if it has none that reads this file, or to read it costs less.

        A plain connection is quicker than that under emulation, and with the sha256sum of busybox.
        """
        if length <= _FEW or not self.over_ssh or kind != SHA256:
            return None
        try:
            quoted = shlex.quote(path.decode())
        except UnicodeDecodeError:
            return None  # SSH has commands in UTF-8
        # sshd may show SFTP another root than commands have.
        line = f"test -r {quoted} && head -c {length} < {quoted} | sha256sum"
        try:
            async with asyncio.timeout(seconds_for(length)):
                process = await self._session.open_process(line, encoding=None)
                try:
                    return bytes.fromhex((await process.stdout.readexactly(64)).decode())
                finally:
                    process.close()
        except (ValueError, asyncio.IncompleteReadError, SessionError, TimeoutError):
            return None  # the caller reads the file again, and then an ended session is an error


async def _over_ssh(session: "GuestSession") -> GuestConnection:
    async with answering(session):
        return GuestConnection(session, await ssh_sftp(session))


class GuestFolder:
    """A folder, by its path."""

    def __init__(self, side: GuestSide, path: bytes) -> None:
        self._side = side
        self._sftp = side.sftp
        self._path = path

    def text(self, name: bytes) -> str:
        """The path of an entry."""
        return self._sftp.text(self._of(name))

    def _of(self, name: bytes) -> bytes:
        return posixpath.join(self._path, name)

    async def entries(self) -> AsyncGenerator[tuple[bytes, Entry], None]:
        """What the guest says is in it."""
        listing = _Listing(self._sftp, self._path)
        dots = 0
        try:
            while dots <= _MOST_DOTS:
                if (found := await listing.next()) is None:
                    return
                name = found.filename
                assert isinstance(name, bytes)
                if name in (b".", b".."):
                    dots += 1
                else:
                    yield name, self._side.read_entry(found.attrs, self._of(name))
            raise EntryError(f"{self.text(b'')}: the guest lists the folder itself again and again")
        finally:
            await listing.close()

    async def entry(self, name: bytes) -> Entry | None:
        """What is there."""
        return await self._side.entry(self._of(name), follow=False)

    async def folder(self, name: bytes) -> "GuestFolder":
        """A folder in it."""
        found = await self.entry(name)
        if found is None or found.kind is not Kind.FOLDER:
            raise EntryError(f"{self.text(name)}: {'not a' if found else 'no such'} folder")
        return GuestFolder(self._side, self._of(name))

    async def make_folder(self, name: bytes) -> None:
        """Make a folder."""
        path = self._of(name)
        attrs = asyncssh.SFTPAttrs(permissions=0o700)
        await self._sftp.ask(self._sftp.client.mkdir(path, attrs), path)

    async def read_link(self, name: bytes) -> bytes:
        """What a link says."""
        path = self._of(name)
        target = await self._sftp.ask(self._sftp.client.readlink(path), path)
        if not target or len(target) > 4095 or b"\0" in target:
            raise EntryError(f"{self.text(name)}: the guest says a link that none can be")
        return target

    async def make_link(self, name: bytes, target: bytes, entry: Entry) -> None:
        """Make a link under a temporary name, and rename it. SFTP cannot give it a time."""
        part = self._of(part_name(name, secrets.token_hex(6)))
        await self._sftp.ask(self._sftp.client.symlink(target, part), part)
        try:
            await _rename(self._side, part, self._of(name))
        except EntryError:
            with suppress(EntryError):  # the first one is the reason
                await self._sftp.ask(self._sftp.client.remove(part), part)
            raise

    async def reader(self, name: bytes) -> "GuestReader":
        """Open a file."""
        path = self._of(name)
        file = await self._sftp.ask(
            self._sftp.client.open(path, constants.FXF_READ, encoding=None, block_size=0), path
        )
        async with _closed_on_error(self._sftp, file):
            said = await self._sftp.ask(file.stat(), path)
            entry = self._side.read_entry(said, path)
            if entry.kind is not Kind.FILE:
                raise EntryError(f"{self.text(name)}: became a {entry.kind.value} during the copy")
            return GuestReader(self._side, file, path, entry)

    async def writer(self, name: bytes, tag: str, *, resume: bool) -> "GuestWriter":
        """Begin a file, or go on with a part of it."""
        part = part_name(name, tag)
        there = await self.entry(part) if resume else None
        try:
            return await self._begin(part, name, there)
        except EntryError:
            # Perhaps another copy of the same file is at work, so its part stays.
            if resume or not await self.entry(part):
                raise
        return await self._begin(part_name(name, secrets.token_hex(6)), name, None)

    async def _begin(self, part: bytes, name: bytes, there: Entry | None) -> "GuestWriter":
        if there and there.kind is not Kind.FILE:
            raise EntryError(f"{self.text(part)}: is not a part that `vsock cp` has left")
        path = self._of(part)
        flags = constants.FXF_READ | constants.FXF_WRITE
        if not there:
            flags |= constants.FXF_CREAT | constants.FXF_EXCL
        attrs = asyncssh.SFTPAttrs(permissions=0o600)
        file = await self._sftp.ask(
            self._sftp.client.open(path, flags, attrs, encoding=None, block_size=0), path
        )
        return GuestWriter(self._side, file, path, self._of(name), there.size if there else 0)

    async def finish(self, entry: Entry | None) -> None:
        """Mode and time of a new folder."""
        if entry:
            await self._sftp.ask(self._sftp.client.setstat(self._path, _attrs(entry)), self._path)

    async def close(self) -> None:
        """Nothing is held."""


class _Listing:
    """What a folder lists. A step of asyncssh's that is cancelled has the guest close the listing, and waits for that.

    So steps are tasks of their own, which nobody has to wait for.
    """

    def __init__(self, sftp: GuestConnection, path: bytes) -> None:
        self._sftp = sftp
        self._path = path
        self._names = cast(
            "AsyncGenerator[asyncssh.SFTPName, None]", sftp.client.scandir(path or b".")
        )
        self._step: asyncio.Task[asyncssh.SFTPName | None] | None = None

    async def next(self) -> asyncssh.SFTPName | None:
        """The next entry; None at the end."""
        self._step = asyncio.ensure_future(anext(self._names, None))
        return await self._sftp.ask(asyncio.shield(self._step), self._path)

    async def close(self) -> None:
        """Have the guest close it, as long as it answers."""
        closing = asyncio.ensure_future(self._close())
        with suppress(EntryError, SessionError):  # what ended the listing is the reason
            await self._sftp.ask(asyncio.shield(closing), self._path)

    async def _close(self) -> None:
        if self._step:
            self._step.cancel()
            await asyncio.wait([self._step])
        await self._names.aclose()


class GuestReader:
    """A file that is read."""

    file: InUse[int] | None = None

    def __init__(
        self, side: GuestSide, file: "asyncssh.SFTPClientFile", path: bytes, entry: Entry
    ) -> None:
        self._side = side
        self._sftp = side.sftp
        self._file = file
        self._path = path
        self._is_named = False
        self.entry = entry

    async def read(self, offset: int, size: int) -> bytes:
        """Read at an offset."""
        size = min(size, self._side.chunk)
        data: bytes = await self._sftp.ask(self._file.read(size, offset), self._path)
        if len(data) > size:
            raise EntryError(f"{self._sftp.text(self._path)}: the guest sends more than was asked")
        return data

    async def now(self) -> Entry:
        """What it is by now."""
        look = self._sftp.client.stat(self._path) if self._is_named else self._file.stat()
        return self._side.read_entry(await self._sftp.ask(look, self._path), self._path)

    async def stream(self, begin: int, *, verify: bool) -> "Stream | None":
        """A plain stream of it from an offset."""
        length, path = self.entry.size - begin, self._path
        stream = await self._side.stream("send", path, path, begin, length, verify=verify)
        # The guest's program opens it by its name, which another file may have by then.
        self._is_named = verify and stream is not None
        return stream

    async def digest(self, length: int, kind: str = SHA256) -> bytes:
        """A digest of its first bytes."""
        found = await self._side.digest(self._path, length, kind)
        return found or await digest_of(self.read, length, kind)

    async def close(self) -> None:
        """Close it."""
        await self._sftp.close_file(self._file)


class GuestWriter:
    """A file under a temporary name."""

    def __init__(
        self,
        side: GuestSide,
        file: "asyncssh.SFTPClientFile",
        part: bytes,
        path: bytes,
        begun: int,
    ) -> None:
        self._side = side
        self._sftp = side.sftp
        self._file = file
        self._part = part
        self._path = path
        self.begun = self._end = begun

    async def write(self, offset: int, data: memoryview) -> None:
        """Write at an offset."""
        self._end = max(self._end, offset + len(data))
        step = self._side.chunk
        for at in range(0, len(data), step):
            piece = bytes(data[at : at + step])
            try:
                await self._sftp.ask(self._file.write(piece, offset + at), self._path)
            except EntryError as error:
                raise await self._why(error) from error

    async def _why(self, error: EntryError) -> EntryError:
        """SFTP's third version has no error for a full disk: it says "Failure"."""
        if isinstance(error.__cause__, asyncssh.SFTPFailure):
            return await self._full() or error
        return error

    async def _full(self) -> EntryError | None:
        """The trouble that the guest's disk is full, if it is."""
        try:
            disk = await self._sftp.ask(self._file.statvfs(), self._path)
        except EntryError:
            return None  # the server cannot say
        if disk.bavail:
            return None
        return EntryError(f"{self._sftp.text(self._path)}: no space left on the guest's disk")

    async def truncate(self, size: int) -> None:
        """Cut or extend it."""
        await self._sftp.ask(self._file.setstat(asyncssh.SFTPAttrs(size=size)), self._path)

    async def stream(self, begin: int, size: int, *, verify: bool) -> "Stream | None":
        """A plain stream into it."""
        return await self._side.stream(
            "take", self._part, self._path, begin, size - begin, verify=verify
        )

    async def digest(
        self, length: int, kind: str = SHA256, written: Written | None = None
    ) -> bytes:
        """A digest of its first bytes."""
        if written:
            await written.after(length - 1, 1)
        found = await self._side.digest(self._part, length, kind)
        return found or await self._read_again(length, kind)

    async def _read_again(self, length: int, kind: str) -> bytes:

        async def read(offset: int, size: int) -> bytes:
            size = min(size, self._side.chunk)
            data: bytes = await self._sftp.ask(self._file.read(size, offset), self._path)
            return data

        return await digest_of(read, length, kind)

    async def place(self, entry: Entry) -> None:
        """Finish it, and rename it."""
        await self._sftp.ask(self._file.setstat(_attrs(entry)), self._path)
        try:
            size = max(entry.size, self._end)  # what comes from a standard stream has none before
            await self._sftp.ask(self._file.fsync(), self._path, seconds_for(size))
        except EntryError as error:
            if not isinstance(error.__cause__, asyncssh.SFTPOpUnsupported):
                raise
            self._side.notes.add(
                f"the SFTP server of {self._side.name} has no fsync: a crash of the guest may lose what was copied"
            )
        await _rename(self._side, self._part, self._path)

    async def discard(self) -> None:
        """Remove it."""
        await self._sftp.ask(self._sftp.client.remove(self._part), self._part)

    async def close(self) -> None:
        """Close it."""
        await self._sftp.close_file(self._file)


def _attrs(entry: Entry) -> asyncssh.SFTPAttrs:
    seconds = min(max(int(entry.seconds), 0), _LAST_SECOND)
    return asyncssh.SFTPAttrs(permissions=entry.mode, atime=seconds, mtime=seconds)


async def _rename(side: GuestSide, old: bytes, new: bytes) -> None:
    """Rename in one step, in place of what has the new name; where the server cannot, in two, and say so."""
    try:
        await side.sftp.ask(side.sftp.client.posix_rename(old, new), new)
        return
    except EntryError as error:
        if not isinstance(error.__cause__, asyncssh.SFTPOpUnsupported):
            raise
    if await side.entry(new, follow=False):
        side.notes.add(
            f"the SFTP server of {side.name} cannot replace a file in one step: for a moment there was none"
        )
        await side.sftp.ask(side.sftp.client.remove(new), new)
    await side.sftp.ask(side.sftp.client.rename(old, new), new)


@asynccontextmanager
async def _closed_on_error(
    sftp: GuestConnection, file: "asyncssh.SFTPClientFile"
) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await sftp.close_file(file)
        raise

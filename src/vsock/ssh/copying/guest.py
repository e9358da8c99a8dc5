"""A guest's files, for a copy, by SFTP. What the guest answers is checked here; how long it takes is bounded.

Paths are the guest's own matter: it can only deceive itself about them.
"""

import asyncio
import errno
import posixpath
import secrets
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, TypeVar, cast

import asyncssh
from asyncssh import constants

from vsock.errors import SessionError
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
    shown,
)
from vsock.ssh.copying.streams import GuestStream
from vsock.ssh.data_connection import DataConnection, DataConnectionError
from vsock.ssh.sftp_server import answering, notes

if TYPE_CHECKING:
    from vsock.ssh.copying.sides import Stream
    from vsock.ssh.session import GuestSession

__all__ = ["GuestSide"]

_ANSWER_SECONDS: Final = 60.0
"""How long one answer may take; sshd of an emulated guest on a busy machine needs seconds."""

_LEAST_BYTES_PER_SECOND: Final = 1 << 20
"""How fast sha256sum must be at least."""

_FEW: Final = 1 << 20
"""Bytes that are read again rather than compared by sha256sum, whose start costs more."""

_MOST_DOTS: Final = 2
"""A folder lists itself and its parent once."""

_MOST_NUMBER: Final = 2**63 - 1
_LAST_SECOND: Final = 2**32 - 1
_T = TypeVar("_T")

_LOST: Final = (
    asyncssh.SFTPConnectionLost,
    asyncssh.SFTPNoConnection,
    asyncssh.ConnectionLost,
    asyncssh.DisconnectError,
    asyncssh.ChannelOpenError,
    ConnectionError,
)

_REASONS: Final[dict[type[asyncssh.SFTPError], str]] = {
    asyncssh.SFTPNoSuchFile: "no such file or folder",
    asyncssh.SFTPPermissionDenied: "permission denied",
    asyncssh.SFTPNoSpaceOnFilesystem: "no space left on the guest's disk",
}


class GuestSide:
    """The files of a guest, as its sshd lets a user have them; `notes` says what its server cannot do."""

    def __init__(
        self,
        session: "GuestSession",
        client: asyncssh.SFTPClient,
        *,
        data: DataConnection | None = None,
        over_ssh: str | None = None,
    ) -> None:
        self._session = session
        self.name = session.name
        self.client = client
        self.notes: set[str] = set()
        self.over_ssh = over_ssh
        """Why ssh carries the data; None if a plain connection does."""
        self._data = data
        self._has_streams = True
        self._stream: GuestStream | None = None
        self._opening: asyncio.Task[GuestStream | None] | None = None
        if data:
            self.notes.update(notes(self.name, refused=data.refused))

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
            return cls(session, await cls._sftp(session), over_ssh="it was asked for")
        stream = asyncio.create_task(_begun(session)) if streams else None
        try:
            side = await cls._plain_or_not(session)
        except BaseException:
            _end_opening(stream)
            raise
        side._opening = stream
        return side

    @classmethod
    async def _plain_or_not(cls, session: "GuestSession") -> "GuestSide":
        try:
            data, client = await plain_sftp(session)
            return cls(session, client, data=data)
        except DataConnectionError as error:
            side = cls(session, await cls._sftp(session), over_ssh=str(error))
            side.notes.update(notes(side.name, refused=error.refused, is_late=error.is_late))
            return side

    @staticmethod
    async def _sftp(session: "GuestSession") -> asyncssh.SFTPClient:
        async with answering(session):
            return await ssh_sftp(session)

    async def close(self) -> None:
        """End SFTP, not the session, unless the guest does not answer."""
        self.end_stream()
        self.client.exit()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self.client.wait_closed()
        except TimeoutError:
            self._abort()
        if self._data:
            self._data.abort()

    def _abort(self) -> None:
        """Give the guest up; closing would wait for its answers."""
        self.end_stream()
        if self._data:
            self._data.abort()
        with suppress(SessionError):  # it is closed already
            self._session.connection.abort()

    @property
    def chunk(self) -> int:
        """Bytes that one request may carry."""
        limits = self.client.limits
        return min(CHUNK, limits.max_read_len or CHUNK, limits.max_write_len or CHUNK)

    def text(self, path: bytes) -> str:
        """The path behind the guest's name."""
        return f"{shown(self.name.encode())}:{shown(path)}"

    async def ask(self, answer: Awaitable[_T], path: bytes, seconds: float | None = None) -> _T:
        """Wait for an answer about a path, so long at most.

        Raises:
            EntryError: the guest says no, or what it must not say.
            SessionError: the session ended, or there is no answer.
        """
        # A listing that is given up asks the guest to close it, and waits for the answer to that.
        seconds = seconds or _ANSWER_SECONDS
        last = asyncio.get_running_loop().call_later(2 * seconds, self._abort)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            self._abort()
            raise SessionError(
                errno.ETIMEDOUT, f"{self.name} did not answer for {seconds:g} s"
            ) from None
        except _LOST as error:
            raise SessionError(
                errno.ECONNRESET,
                f"the session with {self.name} ended during the copy; another one with --resume goes on from there",
            ) from error
        except asyncssh.SFTPError as error:
            reason = _REASONS.get(type(error)) or shown(error.reason[:200].encode())
            raise EntryError(f"{self.text(path)}: {reason}") from error
        except (asyncssh.Error, ValueError) as error:
            raise EntryError(
                f"{self.text(path)}: the guest's SFTP server breaks the protocol"
            ) from error
        finally:
            last.cancel()

    async def entry(self, path: bytes, *, follow: bool) -> Entry | None:
        """What is there."""
        look = self.client.stat if follow else self.client.lstat
        try:
            return self.read_entry(await self.ask(look(path or b"."), path), path)
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

    def read_entry(self, said: asyncssh.SFTPAttrs, path: bytes) -> Entry:
        """Check what the guest says of an entry."""
        size, seconds = said.size or 0, said.mtime or 0
        if said.permissions is None or not 0 <= size <= _MOST_NUMBER or seconds > _MOST_NUMBER:
            raise EntryError(f"{self.text(path)}: the guest does not say what it is")
        return Entry.of(said.permissions, size, min(seconds, _LAST_SECOND))

    async def stream(self, path: bytes) -> GuestStream | None:
        """What carries a file as a plain stream; None if nothing does."""
        if self.over_ssh or not self._has_streams or b"\n" in path:
            return None
        if not self._stream:
            opening, self._opening = self._opening, None
            self._stream = await (opening or _begun(self._session))
            self._has_streams = self._stream is not None
        return self._stream

    def end_stream(self) -> None:
        """End the stream, of which a file was not copied to its end."""
        _end_opening(self._opening)
        self._opening = None
        if self._stream:
            self._stream.close()
            self._stream = None

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
        seconds = _ANSWER_SECONDS + length / _LEAST_BYTES_PER_SECOND
        # sshd may show SFTP another root than commands have.
        line = f"test -r {quoted} && head -c {length} < {quoted} | sha256sum"
        try:
            async with asyncio.timeout(seconds):
                process = await self._session.open_process(line, encoding=None)
                try:
                    return bytes.fromhex((await process.stdout.readexactly(64)).decode())
                finally:
                    process.close()
        except (ValueError, asyncio.IncompleteReadError, SessionError, TimeoutError):
            return None  # the caller reads the file again, and then an ended session is an error


async def _begun(session: "GuestSession") -> GuestStream | None:
    """A stream, unless the guest lacks what that needs."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await GuestStream.open(session)
    except (DataConnectionError, TimeoutError):
        return None


def _end_opening(opening: "asyncio.Task[GuestStream | None] | None") -> None:
    """Nobody wants it any more, though it may have begun."""

    def end(done: "asyncio.Task[GuestStream | None]") -> None:
        if not done.cancelled() and not done.exception() and (stream := done.result()):
            stream.close()

    if opening:
        opening.add_done_callback(end)
        opening.cancel()


class GuestFolder:
    """A folder, by its path."""

    def __init__(self, side: GuestSide, path: bytes) -> None:
        self._side = side
        self._client = side.client
        self._path = path

    def text(self, name: bytes) -> str:
        """The path of an entry."""
        return self._side.text(self._of(name))

    def _of(self, name: bytes) -> bytes:
        return posixpath.join(self._path, name)

    async def entries(self) -> AsyncGenerator[tuple[bytes, Entry], None]:
        """What the guest says is in it."""
        listing = cast(
            "AsyncGenerator[asyncssh.SFTPName, None]", self._client.scandir(self._path or b".")
        )
        dots = 0
        try:
            while dots <= _MOST_DOTS:
                try:
                    found = await self._side.ask(anext(listing), self._path)
                except StopAsyncIteration:
                    return
                name = found.filename
                assert isinstance(name, bytes)
                if name in (b".", b".."):
                    dots += 1
                else:
                    yield name, self._side.read_entry(found.attrs, self._of(name))
            raise EntryError(f"{self.text(b'')}: the guest lists the folder itself again and again")
        finally:
            with suppress(EntryError, SessionError):  # what ended the listing is the reason
                await self._side.ask(listing.aclose(), self._path)

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
        await self._side.ask(self._client.mkdir(path, attrs), path)

    async def read_link(self, name: bytes) -> bytes:
        """What a link says."""
        path = self._of(name)
        target = await self._side.ask(self._client.readlink(path), path)
        if not target or len(target) > 4095 or b"\0" in target:
            raise EntryError(f"{self.text(name)}: the guest says a link that none can be")
        return target

    async def make_link(self, name: bytes, target: bytes, entry: Entry) -> None:
        """Make a link under a temporary name, and rename it. SFTP cannot give it a time."""
        part = self._of(part_name(name, secrets.token_hex(6)))
        await self._side.ask(self._client.symlink(target, part), part)
        try:
            await _rename(self._side, part, self._of(name))
        except EntryError:
            with suppress(EntryError):  # the first one is the reason
                await self._side.ask(self._client.remove(part), part)
            raise

    async def reader(self, name: bytes) -> "GuestReader":
        """Open a file."""
        path = self._of(name)
        file = await self._side.ask(
            self._client.open(path, constants.FXF_READ, encoding=None, block_size=0), path
        )
        async with _closed_on_error(file):
            said = await self._side.ask(file.stat(), path)
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
        file = await self._side.ask(
            self._client.open(path, flags, attrs, encoding=None, block_size=0), path
        )
        return GuestWriter(self._side, file, path, self._of(name), there.size if there else 0)

    async def finish(self, entry: Entry | None) -> None:
        """Mode and time of a new folder."""
        if entry:
            await self._side.ask(self._client.setstat(self._path, _attrs(entry)), self._path)

    async def close(self) -> None:
        """Nothing is held."""


class GuestReader:
    """A file that is read."""

    file: InUse[int] | None = None

    def __init__(
        self, side: GuestSide, file: "asyncssh.SFTPClientFile", path: bytes, entry: Entry
    ) -> None:
        self._side = side
        self._file = file
        self._path = path
        self.entry = entry

    async def read(self, offset: int, size: int) -> bytes:
        """Read at an offset."""
        size = min(size, self._side.chunk)
        data: bytes = await self._side.ask(self._file.read(size, offset), self._path)
        if len(data) > size:
            raise EntryError(f"{self._side.text(self._path)}: the guest sends more than was asked")
        return data

    async def now(self) -> Entry:
        """What it is by now."""
        return self._side.read_entry(
            await self._side.ask(self._file.stat(), self._path), self._path
        )

    async def stream(self, begin: int, *, verify: bool) -> "Stream | None":
        """A plain stream of it from an offset."""
        stream = await self._side.stream(self._path)
        if not stream:
            return None
        length = self.entry.size - begin
        await self._side.ask(stream.give(self._path, begin, length, verify=verify), self._path)
        return _Stream(self._side, stream, self._path)

    async def digest(self, length: int, kind: str = SHA256) -> bytes:
        """A digest of its first bytes."""
        found = await self._side.digest(self._path, length, kind)
        return found or await digest_of(self.read, length, kind)

    async def close(self) -> None:
        """Close it."""
        await _close(self._file)


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
        self._file = file
        self._part = part
        self._path = path
        self.begun = begun

    async def write(self, offset: int, data: memoryview) -> None:
        """Write at an offset."""
        step = self._side.chunk
        for at in range(0, len(data), step):
            piece = bytes(data[at : at + step])
            try:
                await self._side.ask(self._file.write(piece, offset + at), self._path)
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
            disk = await self._side.ask(self._file.statvfs(), self._path)
        except EntryError:
            return None  # the server cannot say
        if disk.bavail:
            return None
        return EntryError(f"{self._side.text(self._path)}: no space left on the guest's disk")

    async def truncate(self, size: int) -> None:
        """Cut or extend it."""
        await self._side.ask(self._file.setstat(asyncssh.SFTPAttrs(size=size)), self._path)

    async def stream(self, begin: int, size: int, *, verify: bool) -> "Stream | None":
        """A plain stream into it."""
        stream = await self._side.stream(self._part)
        if not stream:
            return None
        order = stream.take(self._part, begin, size - begin, verify=verify)
        await self._side.ask(order, self._part)
        return _Stream(self._side, stream, self._part, self._full)

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
            data: bytes = await self._side.ask(self._file.read(size, offset), self._path)
            return data

        return await digest_of(read, length, kind)

    async def place(self, entry: Entry) -> None:
        """Finish it, and rename it."""
        await self._side.ask(self._file.setstat(_attrs(entry)), self._path)
        try:
            await self._side.ask(self._file.fsync(), self._path)
        except EntryError as error:
            if not isinstance(error.__cause__, asyncssh.SFTPOpUnsupported):
                raise
            self._side.notes.add(
                f"the SFTP server of {self._side.name} has no fsync: a crash of the guest may lose what was copied"
            )
        await _rename(self._side, self._part, self._path)

    async def discard(self) -> None:
        """Remove it."""
        await self._side.ask(self._side.client.remove(self._part), self._part)

    async def close(self) -> None:
        """Close it."""
        await _close(self._file)


class _Stream:
    """One file on a stream: the guest answers in time, or is given up. `full` is asked why it has broken."""

    def __init__(
        self,
        side: GuestSide,
        stream: GuestStream,
        path: bytes,
        full: Callable[[], Awaitable[EntryError | None]] | None = None,
    ) -> None:
        self._side = side
        self._stream = stream
        self._path = path
        self._full = full

    async def send(self, file: InUse[int], offset: int, size: int) -> int:
        """Send from a file of the host."""
        return await self._ask(self._stream.send(file, offset, size))

    async def receive(self, buffer: memoryview) -> None:
        """Receive."""
        await self._ask(self._stream.receive(buffer))

    async def crc(self, length: int) -> bytes:
        """The CRC of the guest's file."""
        seconds = _ANSWER_SECONDS + length / _LEAST_BYTES_PER_SECOND
        said = await self._ask(self._stream.crc(), seconds)
        if said is None:
            raise EntryError(f"{self._side.text(self._path)}: the guest says no CRC")
        return said

    def end(self) -> None:
        """The file was not copied to its end."""
        self._side.end_stream()

    async def _ask(self, answer: Awaitable[_T], seconds: float | None = None) -> _T:
        try:
            return await self._side.ask(answer, self._path, seconds)
        except SessionError as error:
            is_broken = isinstance(error.__cause__, ConnectionError)
            if is_broken and self._full and (reason := await self._full()):
                raise reason from error
            raise


def _attrs(entry: Entry) -> asyncssh.SFTPAttrs:
    seconds = min(max(int(entry.seconds), 0), _LAST_SECOND)
    return asyncssh.SFTPAttrs(permissions=entry.mode, atime=seconds, mtime=seconds)


async def _rename(side: GuestSide, old: bytes, new: bytes) -> None:
    """Rename in one step, in place of what has the new name; where the server cannot, in two, and say so."""
    try:
        await side.ask(side.client.posix_rename(old, new), new)
        return
    except EntryError as error:
        if not isinstance(error.__cause__, asyncssh.SFTPOpUnsupported):
            raise
    if await side.entry(new, follow=False):
        side.notes.add(
            f"the SFTP server of {side.name} cannot replace a file in one step: for a moment there was none"
        )
        await side.ask(side.client.remove(new), new)
    await side.ask(side.client.rename(old, new), new)


@asynccontextmanager
async def _closed_on_error(file: "asyncssh.SFTPClientFile") -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        await _close(file)
        raise


async def _close(file: "asyncssh.SFTPClientFile") -> None:
    # What was written has been answered for. If the session has ended, so has the handle.
    with suppress(asyncssh.Error, OSError, ValueError, TimeoutError):
        async with asyncio.timeout(_ANSWER_SECONDS):
            await file.close()

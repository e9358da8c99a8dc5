"""One file: its data in bounded windows, in what state it may be meanwhile, and the comparison at the end."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, nullcontext, suppress
from typing import Final

from vsock.errors import SessionError
from vsock.ssh.copying.digests import CRC32
from vsock.ssh.copying.in_use import InUse
from vsock.ssh.copying.sides import (
    AT_ONCE,
    CHUNK,
    WINDOW,
    Entry,
    EntryError,
    Folder,
    PartLeftError,
    Reader,
    Stream,
    Writer,
    Written,
    cancel,
    read_all,
    written_runs,
)
from vsock.ssh.copying.stream_programs import PIECE
from vsock.ssh.copying.streams import STREAM_FROM

__all__ = ["copy_file", "copy_stream", "read_in_order"]

_DISCARD_SECONDS: Final = 2.0
_SHORT: Final = "ends before its size, or became shorter during the copy"

Came = Callable[[int], None]
"""Called with the number of bytes that came, or were there already."""


async def copy_file(
    source: Folder,
    name: bytes,
    target: Folder,
    new_name: bytes,
    *,
    resume: bool,
    verify: bool,
    came: Came,
    large: asyncio.Lock,
) -> None:
    """Copy a file. Several may be copied at once; `large` is held by the one that needs windows.

    Raises:
        EntryError: it was not copied; nothing has changed under its name.
        PartLeftError, SessionError: the same; what came of it stays as its part.
    """
    reader = await source.reader(name)
    try:
        writer = await target.writer(new_name, _tag(source, name, reader.entry), resume=resume)
        try:
            # What was small in the listing may be large by now.
            async with large if reader.entry.size > CHUNK else nullcontext():
                await _fill(reader, writer, source.text(name), verify=verify, came=came)
            await writer.place(reader.entry)
        except (SessionError, PartLeftError, asyncio.CancelledError):
            if reader.entry.size <= CHUNK:  # a part that small is of no use
                with suppress(EntryError, SessionError, TimeoutError):
                    async with asyncio.timeout(_DISCARD_SECONDS):
                        await writer.discard()
            raise
        except BaseException:
            with suppress(EntryError):  # the first one is the reason
                await writer.discard()
            raise
        finally:
            await writer.close()
    finally:
        await reader.close()


async def copy_stream(
    pieces: AsyncIterator[bytes],
    target: Folder,
    name: bytes,
    tag: str,
    *,
    entry: Entry,
    verify: bool,
    came: Came,
) -> None:
    """Copy what comes, to its end, into a file; it raises what `copy_file` does."""
    writer = await target.writer(name, tag, resume=False)
    try:
        hashed, size = hashlib.sha256(), 0
        outgoing = _Outgoing(writer, AT_ONCE)
        try:
            async for data in pieces:
                hashed.update(data)
                await outgoing.put(size, data)
                size += len(data)
                came(len(data))
            await outgoing.all_done()
        finally:
            await outgoing.end()
        if outgoing.reached < size:
            await writer.truncate(size)
        if verify:
            _compare(hashed.digest(), await writer.digest(size), target.text(name))
        await writer.place(entry)
    except BaseException:
        # A stream comes once: its part is of no use.
        with suppress(EntryError, SessionError):
            await writer.discard()
        raise
    finally:
        await writer.close()


async def _fill(reader: Reader, writer: Writer, text: str, *, verify: bool, came: Came) -> None:
    size = reader.entry.size
    begin = await _whole_prefix(reader, writer)
    if writer.begun:
        await writer.truncate(begin)
    came(begin)
    digests = await _by_stream(reader, writer, begin, text, verify=verify, came=came)
    if digests is None:
        source, offset = await _by_windows(reader, writer, begin, text, came=came)
    now = await reader.now()
    if size and verify and (now.size, now.seconds) != (size, reader.entry.seconds):
        raise EntryError(f"{text}: changed during the copy: copy it again, or with --no-verify")
    if not verify:
        return
    if digests is None:
        read = await reader.digest(offset) if begin else source
        digests = read, await writer.digest(offset)
    _compare(*digests, text)


async def _by_windows(
    reader: Reader, writer: Writer, begin: int, text: str, *, came: Came
) -> tuple[bytes, int]:
    """Copy in chunks; returns the SHA-256 of what was read, and where that ends."""
    hashed = hashlib.sha256()
    outgoing, offset = _Outgoing(writer, AT_ONCE if reader.entry.size else 1), begin
    try:
        async with aclosing(read_in_order(reader, begin, text)) as pieces:
            async for data in pieces:
                hashed.update(data)
                await outgoing.put(offset, data)
                offset += len(data)
                came(len(data))
        await outgoing.all_done()
    finally:
        await outgoing.end()
    if outgoing.reached < offset:
        await writer.truncate(offset)  # it ends in a hole
    return hashed.digest(), offset


async def _by_stream(
    reader: Reader, writer: Writer, begin: int, text: str, *, verify: bool, came: Came
) -> tuple[bytes, bytes] | None:
    """Copy a large file by a plain stream, if there is one; returns the CRC of what was read, and that of the copy.

    Each side sums up its own file, at the same time.
    """
    size, file = reader.entry.size, reader.file
    if size - begin < STREAM_FROM:
        return None
    is_sent = file is not None
    stream = await (
        writer.stream(begin, size, verify=verify)
        if is_sent
        else reader.stream(begin, verify=verify)
    )
    if stream is None:
        return None
    written = Written()

    async def ours() -> bytes:
        if not verify:
            return b""
        return await (
            reader.digest(size, CRC32) if is_sent else writer.digest(size, CRC32, written)
        )

    here = asyncio.create_task(ours())
    is_done = False
    try:
        if file is not None:
            await _send(stream, file, begin, size, text, came)
        else:
            await _receive(stream, writer, begin, size, came, written)
        there = await stream.crc(size)
        crcs = (await here, there) if is_sent else (there, await here)
        is_done = True
    except (SessionError, EntryError):
        if not is_sent and await _is_shorter(reader, size):
            raise EntryError(f"{text}: {_SHORT}") from None
        raise
    finally:
        here.cancel()
        await asyncio.gather(here, return_exceptions=True)
        if not is_done:
            stream.end()
    return crcs


async def _is_shorter(reader: Reader, size: int) -> bool:
    with suppress(SessionError, EntryError):  # there was an error before
        return (await reader.now()).size < size
    return False


async def _send(
    stream: Stream, file: InUse[int], begin: int, size: int, text: str, came: Came
) -> None:
    at = begin
    while at < size:
        try:
            count = await stream.send(file, at, min(PIECE, size - at))
        except SessionError:
            raise
        except OSError as error:
            raise EntryError(f"{text}: {error.strerror or error}") from error
        if not count:
            raise EntryError(f"{text}: {_SHORT}")
        at += count
        came(count)


async def _receive(
    stream: Stream, writer: Writer, begin: int, size: int, came: Came, written: Written
) -> None:
    buffer, at, reached = memoryview(bytearray(PIECE)), begin, begin
    while at < size:
        piece = buffer[: size - at]
        await stream.receive(piece)
        for offset, run in written_runs(piece):
            await writer.write(at + offset, run)
            reached = at + offset + len(run)
        at += len(piece)
        came(len(piece))
        written.until(reached)  # behind it may be a hole, which is none before something follows
    if reached < size:
        await writer.truncate(size)
    written.until(size)


async def _whole_prefix(reader: Reader, writer: Writer) -> int:
    """How much of a part can stay: what came before a break, if it is the same on both sides."""
    # Writes are answered in any order, but those on their way at once are of one window.
    begun = min(writer.begun, reader.entry.size) - WINDOW
    begun -= begun % CHUNK
    if begun <= 0 or await reader.digest(begun) != await writer.digest(begun):
        return 0
    return begun


def _compare(read: bytes, written: bytes, text: str) -> None:
    if read != written:
        raise EntryError(f"{text}: what was written is not what was read: copy it again")


async def read_in_order(reader: Reader, begin: int, text: str) -> AsyncGenerator[bytes, None]:
    """The data of a file from an offset, read ahead in a window; as much as its size said when it was opened.

    A file without a size, as in /proc, is read to its end.
    """
    size = reader.entry.size
    if not size:
        offset = 0
        while data := await reader.read(offset, CHUNK):
            yield data
            offset += len(data)
        return
    ahead: deque[asyncio.Task[bytes]] = deque()
    asked = begin
    try:
        while asked < size or ahead:
            while asked < size and len(ahead) < AT_ONCE:
                length = min(CHUNK, size - asked)
                ahead.append(asyncio.create_task(_read_whole(reader, asked, length, text)))
                asked += length
            yield await ahead.popleft()
    finally:
        await cancel(ahead)


async def _read_whole(reader: Reader, offset: int, length: int, text: str) -> bytes:
    data = await read_all(reader.read, offset, length)
    if len(data) < length:
        raise EntryError(f"{text}: {_SHORT}")
    return data


class _Outgoing:
    """Writes on their way, a bounded number; `reached` is the end of the last one."""

    def __init__(self, writer: Writer, at_once: int) -> None:
        self._writer = writer
        self._at_once = at_once
        self.reached = 0
        self._tasks: deque[asyncio.Task[None]] = deque()

    async def put(self, offset: int, data: bytes) -> None:
        """Write what is not zeros; waits while the window is full."""
        for at, run in written_runs(data):
            while len(self._tasks) >= self._at_once:
                await self._tasks.popleft()
            self._tasks.append(asyncio.create_task(self._writer.write(offset + at, run)))
            self.reached = offset + at + len(run)

    async def all_done(self) -> None:
        """Wait for all of them."""
        while self._tasks:
            await self._tasks.popleft()

    async def end(self) -> None:
        """Let none of them go on."""
        await cancel(self._tasks)


def _tag(source: Folder, name: bytes, entry: Entry) -> str:
    """What a part of this very file is known by: its place, size and time."""
    identity = f"{source.text(name)}\0{entry.size}\0{entry.seconds}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]

"""Large files as plain streams: a data connection with nothing between the bytes but two lines before each file.

sftp-server reads and writes 32 KiB at a time, and under emulation these many system calls are what is slow. A stream
has no requests. SFTP makes the file, gives it mode and time, and renames it, as for any other file. What runs in the
guest is in `stream_programs`.
"""

import asyncio
import errno
import os
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from socket import MSG_WAITALL, SHUT_RDWR
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

import asyncssh

from vsock._system.text import printable
from vsock.errors import SessionError
from vsock.ssh.attached import in_thread
from vsock.ssh.copying.connection import NO_PERMISSION, NO_SPACE, NO_SUCH, seconds_for
from vsock.ssh.copying.digests import CRC32, SEGMENT, read_crc
from vsock.ssh.copying.in_use import InUse
from vsock.ssh.copying.sides import CHUNK, EntryError, PartLeftError
from vsock.ssh.copying.stream_programs import FAILED, LINE, NONE, READY
from vsock.ssh.data_connection import DataConnectionError, open_data_connection

if TYPE_CHECKING:
    from vsock.ssh.copying.connection import GuestConnection
    from vsock.ssh.data_connection import DataConnection
    from vsock.ssh.session import GuestSession

__all__ = ["STREAM_FROM", "FileStream", "GuestStreams", "Way", "fill"]

STREAM_FROM: Final = 8 << 20
"""Bytes of a file from which on a stream is quicker; to open one takes as long as some MiB by SFTP."""

_OPEN_SECONDS: Final = 60.0
"""How long the guest may take until its program has begun."""

_END_SECONDS: Final = 10.0
"""How long sshd may take to say how a program ended that has closed its stream."""

_NO_SENDFILE: Final = (errno.EINVAL, errno.ENOSYS)
"""Errors of a file system without it."""

_REASONS: Final = {
    "No such file or directory": NO_SUCH,
    "Permission denied": NO_PERMISSION,
    "No space left on device": NO_SPACE,
}
"""What a guest's program says, in the words that SFTP's errors have here."""

Way = Literal["take", "send"]
"""What a guest does with a file."""

_T = TypeVar("_T")
_LONGEST_LINE: Final = 256
_LONGEST_REASON: Final = 100


def fill(sock: socket.socket, buffer: memoryview) -> bool:
    """Receive until the buffer is full; returns False at the end of the data."""
    while buffer:
        # A signal, or a stop of this process, cuts it short.
        count = sock.recv_into(buffer, len(buffer), MSG_WAITALL)
        if not count:
            return False
        buffer = buffer[count:]
    return True


def _send(sock: socket.socket, file: InUse[int], offset: int, size: int) -> int:
    with file as descriptor:
        try:
            return os.sendfile(sock.fileno(), descriptor, offset, size)
        except OSError as error:
            if error.errno not in _NO_SENDFILE:
                raise
        data = os.pread(descriptor, size, offset)
        sock.sendall(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class _End:
    """How a guest's program ended: `reason` is what it says has failed, `status` says how else."""

    reason: str | None
    status: str


class GuestStream:
    """A stream to and from files of the guest, one after the other.

    Threads wait for it: asyncio would be woken for each few packets. The caller bounds the time, and ends it.
    """

    def __init__(self, data: "DataConnection") -> None:
        self._data = data
        sock = socket.socket(fileno=data.detach().detach())
        sock.setblocking(True)
        self._sock = InUse(sock, socket.socket.close)
        self._said = b""
        self._watch = asyncio.create_task(self._end_with_session())

    @classmethod
    async def open(cls, session: "GuestSession") -> Self:
        """Let the guest connect.

        Raises:
            DataConnectionError: it lacks what that needs.
        """
        data = await open_data_connection(session, ["sh"], ["-c", LINE])
        try:
            # It says nothing more before it is asked to, so that what it says then is not read here.
            if await data.reader.readexactly(len(READY)) == READY:
                return cls(data)
        except (asyncio.IncompleteReadError, OSError) as error:
            data.abort()
            raise DataConnectionError("it begins no stream") from error
        except BaseException:
            data.abort()
            raise
        data.abort()
        raise DataConnectionError("it begins no stream")

    async def _end_with_session(self) -> None:
        await self._data.wait_closed()
        self._shut_down()

    def _shut_down(self) -> None:
        with suppress(OSError), self._sock as sock:  # the other side has ended it
            sock.shutdown(SHUT_RDWR)

    def is_idle(self) -> bool:
        """Whether the guest's program waits for an order: nothing more has come, and no end."""
        with self._sock as sock:
            poller = select.poll()
            poller.register(sock, select.POLLIN)
            return not self._said and not poller.poll(0)

    async def order(self, way: Way, path: bytes, begin: int, length: int, *, verify: bool) -> None:
        """Let the guest take what is sent for a file that is there, from an offset, or send that part of it."""
        words = f"{way} {CRC32 if verify else NONE} {begin // CHUNK} {length}\n"
        await self._in_thread(socket.socket.sendall, path + b"\n" + words.encode())

    async def send(self, file: InUse[int], offset: int, size: int) -> int:
        """Send from a file, and return how many bytes; none at its end.

        Raises:
            ConnectionError: the guest's program has ended.
        """
        return await self._in_thread(_send, file, offset, size)

    async def receive(self, buffer: memoryview) -> None:
        """Receive until the buffer is full.

        Raises:
            ConnectionError: less has come.
        """
        if not await self._in_thread(fill, buffer):
            raise ConnectionResetError("the guest's program has ended")

    async def crc(self) -> bytes | None:
        """The CRC of the next segment, which the guest says after the last byte; None if it says something else.

        Raises:
            ConnectionError: its program has failed, or has ended before.
        """
        while b"\n" not in self._said:
            if len(self._said) >= _LONGEST_LINE:
                return None
            more = await self._in_thread(socket.socket.recv, _LONGEST_LINE)
            if not more:
                raise ConnectionResetError("the guest's program has ended")
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return read_crc(line)

    async def _in_thread(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await in_thread(self._work, call, *arguments)

    def _work(self, call: Callable[..., _T], *arguments: Any) -> _T:
        with self._sock as sock:
            return call(sock, *arguments)

    async def ended(self) -> _End | None:
        """Wait for the end of the program that has closed its stream; None if it has none that sshd tells in time."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                said, code = await self._data.last_words()
        except (TimeoutError, asyncssh.Error):
            return None
        if code is None:
            return None
        lines = [one for one in said.splitlines() if one.startswith(FAILED)]
        reason = printable(lines[-1].removeprefix(FAILED), _LONGEST_REASON) if lines else None
        return _End(reason, f"signal {-code}" if code < 0 else f"exit status {code}")

    def close(self) -> None:
        """End it, and the guest's program by that; a thread that waits for it goes on, and fails."""
        self._watch.cancel()
        self._shut_down()
        self._data.abort()
        self._sock.close()


class GuestStreams:
    """The stream of a guest: one at a time, and another one behind one that has ended."""

    def __init__(self, session: "GuestSession") -> None:
        self._session = session
        self._has_program = True
        self._stream: GuestStream | None = None
        self._opening: asyncio.Task[GuestStream | None] | None = None

    def begin(self) -> None:
        """Open it meanwhile, for a file that will want it."""
        self._opening = asyncio.create_task(self._open())

    async def get(self) -> GuestStream | None:
        """The stream; None if the guest lacks what that needs."""
        if self._stream and not self._stream.is_idle():
            self.end()
        if not self._stream and self._has_program:
            opening, self._opening = self._opening, None
            self._stream = await (opening or self._open())
            self._has_program = self._stream is not None
        return self._stream

    async def _open(self) -> GuestStream | None:
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                return await GuestStream.open(self._session)
        except (DataConnectionError, TimeoutError):
            return None

    def end(self) -> None:
        """End it; the next file has another one."""
        if self._opening:
            self._opening.add_done_callback(_close_opened)
            self._opening.cancel()
            self._opening = None
        if self._stream:
            self._stream.close()
            self._stream = None


class FileStream:
    """One file on a stream: the guest answers in time, or is given up.

    Each call raises:
        EntryError: the guest's program says what has failed.
        PartLeftError: it ended, and does not say why.
        SessionError: the session ended, or there is no answer.
    """

    def __init__(
        self, sftp: "GuestConnection", streams: GuestStreams, stream: GuestStream, name: bytes
    ) -> None:
        self._sftp = sftp
        self._streams = streams
        self._stream = stream
        self._name = name
        self._is_verified = False

    async def order(self, way: Way, path: bytes, begin: int, length: int, *, verify: bool) -> None:
        """Tell the guest."""
        self._is_verified = verify
        try:
            await self._ask(self._stream.order(way, path, begin, length, verify=verify))
        except BaseException:
            self.end()
            raise

    async def send(self, file: InUse[int], offset: int, size: int) -> int:
        """Send from a file of the host."""
        return await self._ask(self._stream.send(file, offset, size))

    async def receive(self, buffer: memoryview) -> None:
        """Receive."""
        await self._ask(self._stream.receive(buffer))

    async def crc(self, length: int) -> bytes:
        """The CRCs of the guest's file, each of which has its time."""
        whole = b""
        for _ in range(0, length if self._is_verified else 1, SEGMENT):
            said = await self._ask(self._stream.crc(), seconds_for(SEGMENT))
            if said is None:
                raise EntryError(f"{self._sftp.text(self._name)}: the guest says no CRC")
            whole += said
        return whole

    def end(self) -> None:
        """The file was not copied to its end."""
        self._streams.end()

    async def _ask(self, answer: Awaitable[_T], seconds: float | None = None) -> _T:
        try:
            return await self._sftp.ask(answer, self._name, seconds)
        except SessionError as error:
            if isinstance(error.__cause__, ConnectionError):
                raise await self._failure() from error
            raise

    async def _failure(self) -> EntryError:
        """Why the guest's program has ended; raises the error of a session that ended."""
        text = self._sftp.text(self._name)
        end = await self._stream.ended()
        if end and end.reason:
            return EntryError(f"{text}: {_REASONS.get(end.reason, end.reason)}")
        with suppress(EntryError):  # it answers
            await self._sftp.ask(self._sftp.client.stat(b"."), b".")
        status = f" ({end.status})" if end else ""
        return PartLeftError(
            f"{text}: the guest's program ended during the copy{status}; another one with --resume goes on from there"
        )


def _close_opened(opening: "asyncio.Task[GuestStream | None]") -> None:
    """Nobody wants it any more, though it may have begun."""
    if not opening.cancelled() and not opening.exception() and (stream := opening.result()):
        stream.close()

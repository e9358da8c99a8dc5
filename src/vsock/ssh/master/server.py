"""The control master itself: one session, and the commands that clients run in it."""

import asyncio
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from vsock._system.descriptors import PIECE
from vsock._system.text import printable
from vsock.errors import VsockError
from vsock.ssh.attached import ending_at_signals
from vsock.ssh.command_line import START_SECONDS
from vsock.ssh.master.messages import (
    GREETING,
    LONGEST,
    Key,
    Status,
    at,
    decode,
    encode,
    open_directory,
    sessions_dir,
)
from vsock.ssh.session import GuestSession, end

if TYPE_CHECKING:
    from vsock.ssh.attached import Process

__all__ = ["Listener", "Master", "listener"]

_MOST_CLIENTS: Final = 64
_REQUEST_SECONDS: Final = 10.0
"""How long a client may say nothing before its request."""
_PIPES: Final = 3


class Listener:
    """Where clients find a session."""

    def __init__(self, directory: int, sock: socket.socket, path: Path) -> None:
        self.sock = sock
        self._directory = directory
        self._path = path
        self._made = path.stat()

    def remove(self) -> None:
        """Let nobody find it any more. A second call has no effect."""
        fcntl.flock(self._directory, fcntl.LOCK_EX)
        try:
            if os.path.samestat(self._path.stat(), self._made):
                self._path.unlink()
        except FileNotFoundError:
            pass  # the second call
        finally:
            fcntl.flock(self._directory, fcntl.LOCK_UN)


@contextmanager
def listener(key: Key) -> Iterator[Listener | None]:
    """Listen where clients look for the session, until the end of the block; None if another master does.

    Raises:
        SessionError: the directory is not ours alone (EPERM).
        OSError: it cannot be made.
    """
    sessions_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = open_directory()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = at(directory, key.file_name)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # of two that start at once, one listens
        try:
            is_ours = _bind(sock, path)
            if is_ours:
                sock.listen(_MOST_CLIENTS)
                made = Listener(directory, sock, path)
        finally:
            fcntl.flock(directory, fcntl.LOCK_UN)
        if not is_ours:
            yield None
            return
        try:
            yield made
        finally:
            made.remove()
    finally:
        sock.close()
        os.close(directory)


def _bind(sock: socket.socket, path: Path) -> bool:
    """Bind it; False if another listens there."""
    try:
        sock.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    else:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(_REQUEST_SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # a master that was killed left it
            sock.bind(str(path))
            return True
    return False


class Master:
    """Serves clients until the session has ended, nothing has run for a while, or a client closes it.

    Args:
        session: open.
        key: what it is known by.
        place: where it listens.
        idle_seconds: how long the session stays open when nothing runs in it.
    """

    def __init__(
        self, session: GuestSession, key: Key, place: Listener, idle_seconds: float
    ) -> None:
        place.sock.setblocking(False)
        self._session = session
        self._key = key
        self._place = place
        self._idle_seconds = idle_seconds
        self._begun = time.monotonic()
        self._closing: asyncio.TimerHandle | None = None
        self._running = 0
        self._clients: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the session is to end; what runs in it is ended then."""
        watching = asyncio.create_task(self._session.connection.wait_closed())
        accepting = asyncio.create_task(self._accept())
        for task in (watching, accepting):
            task.add_done_callback(lambda _: self._over.set())
        self._rest()
        try:
            await self._over.wait()
        finally:
            self._place.remove()
            tasks = [watching, accepting, *self._clients]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End it, from a handler of signals."""
        self._over.set()

    def _rest(self) -> None:
        """Nothing runs: the session closes after a while."""
        loop = asyncio.get_running_loop()
        self._closing = loop.call_later(self._idle_seconds, self._over.set)

    def _work(self) -> None:
        if self._closing:
            self._closing.cancel()
            self._closing = None

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._place.sock)
            if len(self._clients) >= _MOST_CLIENTS:
                client.close()  # without a greeting: it does without us
                continue
            task = asyncio.create_task(self._serve(client))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, client: socket.socket) -> None:
        """Answer a client until it goes, says nothing any more, or its command has ended."""
        with client, suppress(OSError, TimeoutError):
            client.send(encode(GREETING))
            while True:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    packet, pipes = await _receive(client)
                if not packet:
                    return
                try:
                    await self._answer(client, decode(packet), pipes)
                except (ValueError, KeyError, TypeError):
                    return  # it is no client of ours
                finally:
                    for pipe in pipes:
                        pipe.close()

    async def _answer(
        self, client: socket.socket, request: dict[str, Any], pipes: list[FileIO]
    ) -> None:
        match request["ask"]:
            case "status":
                client.send(encode(asdict(self._status())))
            case "close":
                self._place.remove()
                client.send(encode({}))
                self._over.set()
            case "run" if len(pipes) == _PIPES:
                self._running += 1
                self._work()
                try:
                    await self._run(client, request["line"], request["terminal"], pipes)
                finally:
                    self._running -= 1
                    if not self._running:
                        self._rest()

    def _status(self) -> Status:
        loop = asyncio.get_running_loop()
        return Status(
            guest=self._key.guest,
            user=self._key.user,
            port=self._key.port,
            forward_agent=self._key.forward_agent,
            pid=os.getpid(),
            running=self._running,
            age=time.monotonic() - self._begun,
            closes_in=None if self._closing is None else self._closing.when() - loop.time(),
        )

    async def _run(
        self,
        client: socket.socket,
        line: str | None,
        terminal: dict[str, Any] | None,
        pipes: list[FileIO],
    ) -> None:
        taken = tuple(pipes)
        pipes.clear()
        stdin, stdout, stderr = taken
        options: dict[str, Any] = {"encoding": None, "stdout": stdout, "stderr": stderr}
        if terminal:
            options |= {"term_type": terminal["type"], "term_size": tuple(terminal["size"])}
        process = await self._start(client, line, options, taken)
        if process is None:
            return
        feeding = asyncio.create_task(_feed(self._session, stdin, process))
        steering = asyncio.create_task(_steer(client, process))
        try:
            client.send(encode({"started": True}))
            await process.wait_closed()
        except BaseException:
            end(process)
            raise
        finally:
            for task in (feeding, steering):
                task.cancel()
            await asyncio.gather(feeding, steering, return_exceptions=True)
        ended_by = printable(process.exit_signal[0], 16) if process.exit_signal else None
        client.send(encode({"status": process.exit_status, "signal": ended_by}))

    async def _start(
        self,
        client: socket.socket,
        line: str | None,
        options: dict[str, Any],
        pipes: Sequence[FileIO],
    ) -> "Process | None":
        """Start a command, whose pipes are asyncssh's then; None if it does not, which the client has been told."""
        starting = asyncio.create_task(self._session.open_process(line, **options))
        starting.add_done_callback(partial(_close_failed, pipes))
        # Never cancelled: asyncssh would leave the channel open, and perhaps a command in it.
        try:
            done, _ = await asyncio.wait({starting}, timeout=START_SECONDS)
        except asyncio.CancelledError:
            starting.add_done_callback(_end_late)
            client.send(encode({"error": "the session was closed"}))
            raise
        if not done:
            starting.add_done_callback(_end_late)
            name, seconds = self._session.name, START_SECONDS
            text = f"sshd of {name} started no command within {seconds:g} s"
            client.send(encode({"error": text}))
            return None
        try:
            return starting.result()
        except (VsockError, OSError) as error:
            # Nothing has run if there was no channel: for instance more commands at once than MaxSessions of
            # sshd_config(5). A connection that ends may have carried the command there before.
            is_refused = isinstance(error.__cause__, asyncssh.ChannelOpenError)
            is_open = not self._session.connection.is_closed()
            reason = getattr(error, "strerror", None) or str(error)
            client.send(encode({"declined" if is_refused and is_open else "error": reason}))
            return None


def _close_failed(pipes: Sequence[FileIO], starting: "asyncio.Task[Process]") -> None:
    if starting.cancelled() or starting.exception():
        for pipe in pipes:
            pipe.close()


def _end_late(starting: "asyncio.Task[Process]") -> None:
    if not starting.cancelled() and not starting.exception():
        end(starting.result())


async def _feed(session: GuestSession, stdin: FileIO, process: "Process") -> None:
    """Send what the client writes, and its end, as long as the command reads."""
    reader = asyncio.StreamReader(limit=PIECE)
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, stdin)
    try:
        while piece := await reader.read(PIECE):
            process.stdin.write(piece)
            await process.stdin.drain()
            await session.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return  # the command reads no more: closing the pipe tells the client
    finally:
        transport.close()


async def _steer(client: socket.socket, process: "Process") -> None:
    """Pass on what the client says while its command runs; one that has gone, or talks nonsense, ends it."""
    with ending_at_signals(process) as signalled:
        try:
            while True:
                packet, pipes = await _receive(client)
                for pipe in pipes:
                    pipe.close()
                if not packet:
                    break
                message = decode(packet)
                if "signal" in message:
                    signalled(str(message["signal"]))
                elif "size" in message:
                    columns, rows = map(int, message["size"])
                    with suppress(OSError):  # it has ended
                        process.change_terminal_size(columns, rows)
        except (ValueError, TypeError):
            pass
        end(process)


async def _receive(sock: socket.socket) -> tuple[bytes, list[FileIO]]:
    """Read a packet and its pipes (to read from, to write to, to write to); an empty one at the end."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    while True:
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(sock, _settle, readable)
        try:
            await readable
        finally:
            loop.remove_reader(sock)
        try:
            packet, numbers, _, _ = socket.recv_fds(sock, LONGEST, _PIPES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        except OSError:
            return b"", []
        modes = ("r", "w", "w")
        return packet, [FileIO(number, mode) for number, mode in zip(numbers, modes, strict=False)]


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)

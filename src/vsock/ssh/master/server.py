"""The control master itself: one session, and the commands that clients run in it."""

import asyncio
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vsock.errors import SessionError, VsockError
from vsock.ssh.attached import ending_at_signals
from vsock.ssh.master.messages import LONGEST, Key, Status, at, decode, encode, sessions_dir
from vsock.ssh.session import GuestSession, end, printable

if TYPE_CHECKING:
    from vsock.ssh.attached import Process

__all__ = ["Master", "listener"]

_MOST_CLIENTS: Final = 64
_REQUEST_SECONDS: Final = 10.0
"""How long a client may say nothing before its request."""
_START_SECONDS: Final = 30.0
"""How long sshd may take to start a command: an emulated guest computes for seconds."""
_PIPES: Final = 3


@contextmanager
def listener(key: Key) -> Iterator[socket.socket]:
    """Listen where clients look for the session; the socket's file goes with the block.

    Raises:
        SessionError: the session has a master.
        OSError: the directory cannot be made.
    """
    sessions_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(sessions_dir(), os.O_RDONLY | os.O_DIRECTORY)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = at(directory, key.file_name)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # of two that start at once, one listens
        try:
            _bind(sock, path, key)
            sock.listen(_MOST_CLIENTS)
            made = path.stat()
        finally:
            fcntl.flock(directory, fcntl.LOCK_UN)
        try:
            yield sock
        finally:
            fcntl.flock(directory, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), made):
                    path.unlink()
    finally:
        sock.close()
        os.close(directory)


def _bind(sock: socket.socket, path: Path, key: Key) -> None:
    try:
        sock.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    else:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(_REQUEST_SECONDS)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # a master that was killed left it
            sock.bind(str(path))
        else:
            raise SessionError(errno.EEXIST, f"there is a session with {key.guest}")


class Master:
    """Serves clients until the session has ended, nothing has run for a while, or a client closes it.

    Args:
        session: open.
        key: what it is known by.
        sock: the listener.
        idle_seconds: how long the session stays open when nothing runs in it.
    """

    def __init__(
        self, session: GuestSession, key: Key, sock: socket.socket, idle_seconds: float
    ) -> None:
        sock.setblocking(False)
        self._session = session
        self._key = key
        self._sock = sock
        self._idle_seconds = idle_seconds
        self._begun = time.monotonic()
        self._closing: asyncio.TimerHandle | None = None
        self._running = 0
        self._clients: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the session is to end; what runs in it is ended then."""
        tasks = [asyncio.create_task(it) for it in (self._watch_session(), self._accept())]
        self._rest()
        try:
            await self._over.wait()
        finally:
            for task in (*tasks, *self._clients):
                task.cancel()
            await asyncio.gather(*tasks, *self._clients, return_exceptions=True)

    def close(self) -> None:
        """End it, from a handler of signals."""
        self._over.set()

    async def _watch_session(self) -> None:
        await self._session.connection.wait_closed()
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
            client, _ = await loop.sock_accept(self._sock)
            if len(self._clients) >= _MOST_CLIENTS:
                client.close()
                continue
            task = asyncio.create_task(self._serve(client))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, client: socket.socket) -> None:
        """Answer a client until it goes, says nothing any more, or its command has ended."""
        with client, suppress(TimeoutError):
            while True:
                async with asyncio.timeout(_REQUEST_SECONDS):
                    packet, pipes = await _receive(client)
                if not packet:
                    return
                try:
                    await self._answer(client, decode(packet), pipes)
                except (OSError, ValueError, KeyError, TypeError):
                    return  # a client that went, or is none of ours
                finally:
                    while pipes:
                        os.close(pipes.pop())

    async def _answer(
        self, client: socket.socket, request: dict[str, Any], pipes: list[int]
    ) -> None:
        match request["ask"]:
            case "status":
                client.send(encode(asdict(self._status())))
            case "close":
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
        pipes: list[int],
    ) -> None:
        options: dict[str, Any] = {"encoding": None}
        if terminal:
            options |= {"term_type": terminal["type"], "term_size": tuple(terminal["size"])}
        # asyncssh owns what it is given.
        files = [os.dup(pipe) for pipe in pipes]
        options |= zip(("stdin", "stdout", "stderr"), files, strict=True)
        try:
            async with asyncio.timeout(_START_SECONDS):
                process = await self._session.open_process(line, **options)
        except TimeoutError:
            name, seconds = self._session.name, _START_SECONDS
            client.send(
                encode({"error": f"sshd of {name} started no command within {seconds:g} s"})
            )
            return
        except (VsockError, OSError) as error:
            client.send(encode({"error": getattr(error, "strerror", None) or str(error)}))
            return
        while pipes:
            os.close(pipes.pop())  # or the client waits for the end of its output
        try:
            client.send(encode({"started": True}))
            steering = asyncio.create_task(_steer(client, process))
            try:
                await process.wait_closed()
            finally:
                steering.cancel()
                await asyncio.gather(steering, return_exceptions=True)
            ended_by = printable(process.exit_signal[0], 16) if process.exit_signal else None
            client.send(encode({"status": process.exit_status, "signal": ended_by}))
        except BaseException:
            end(process)
            raise


async def _steer(client: socket.socket, process: "Process") -> None:
    """Pass on what the client says while its command runs; a client that has gone ends it."""
    signalled = ending_at_signals(process)
    while True:
        packet, pipes = await _receive(client)
        for pipe in pipes:
            os.close(pipe)
        if not packet:
            end(process)
            return
        message = decode(packet)
        if "signal" in message:
            signalled(str(message["signal"]))
        elif "size" in message:
            columns, rows = map(int, message["size"])
            with suppress(OSError):  # it has ended
                process.change_terminal_size(columns, rows)


async def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Read a packet and its descriptors; an empty one at the end."""
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
            packet, pipes, _, _ = socket.recv_fds(sock, LONGEST, _PIPES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            continue
        except OSError:
            return b"", []
        return packet, pipes


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)

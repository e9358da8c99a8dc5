"""An SSH server in a userspace guest: asyncssh's, which runs real commands. Terminals and signals are tested with sshd.

`tests/guests/test_exec.py` has the same with OpenSSH's sshd in Linux guests.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncssh

from vsock.guest import Guest
from vsock.preload import preload_environment
from vsock.ssh.data_connection import _NO_OPENER, _TOKEN_VARIABLE
from vsock.ssh.identity import Identity

_Order = Callable[[str | None], tuple[list[str], dict[str, str]]]

_GUARDED = """
import os, sys
from vsock.cli.guard import raise_guard
raise_guard(kill=True)
os.execv("/bin/sh", ["/bin/sh", "-c", sys.argv[1]])
"""


class SshServer:
    """Serves on a port of a guest until the end of the block; `key` is its host key.

    Args:
        guest: whose machine it is.
        authorized: the public key that it takes.
        port: where it listens.
        key: the host key; by default a new one.
        sftp: makes its SFTP server, with the files of this machine.
        other_keys: more host keys, of other kinds.
        before: a line that the user's shell runs first, as some have one for it.
        instead: a line for the shell that it runs whatever command is asked for.
        programs: a folder with programs that the guest also has. By default it has none that can open a connection
            for data.
        has_only: it has no others.
        sessions: how many commands it starts on a connection, and no files; None for no limit.
        is_mute: a command too many gets no answer; by default it is refused.
        window: how many bytes a program's input may have, before the program has read any.
    """

    def __init__(
        self,
        guest: Guest,
        authorized: str,
        *,
        port: int = 22,
        key: asyncssh.SSHKey | None = None,
        sftp: Callable[
            ["asyncssh.SSHServerChannel[bytes]"], asyncssh.SFTPServer
        ] = asyncssh.SFTPServer,
        other_keys: Sequence[asyncssh.SSHKey] = (),
        before: str = "",
        instead: str | None = None,
        programs: Path | None = None,
        has_only: bool = False,
        sessions: int | None = None,
        is_mute: bool = False,
        window: int = 1 << 21,
    ) -> None:
        self.key = key or asyncssh.generate_private_key("ssh-ed25519")
        self._sftp = sftp
        self._guest = guest
        self._port = port
        self._other_keys = other_keys
        self._before = before
        self._instead = instead
        self._programs = programs
        self._has_only = has_only
        self._sessions = sessions
        self._is_mute = is_mute
        self._window = window
        self._authorized = authorized
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._ends: set[asyncio.Task[Any]] = set()
        self._server: asyncssh.SSHAcceptor | None = None
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.asked_too_much = threading.Event()

    @property
    def public_key(self) -> str:
        """Its host key as `ssh-ed25519 AAAA…`."""
        return " ".join(self.key.export_public_key().decode().split()[:2])

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Make it read, write and answer nothing until the end of the block."""
        stopped, goes_on = threading.Event(), threading.Event()

        def stop() -> None:
            stopped.set()
            goes_on.wait()

        self._loop.call_soon_threadsafe(stop)
        stopped.wait()
        try:
            yield
        finally:
            goes_on.set()

    def begin_key_exchange(self) -> None:
        """Send all clients the first packet of one, and read and answer nothing after it."""

        async def begin() -> None:
            for connection in self.connections:
                connection._send_kexinit()
                connection._transport.pause_reading()  # type: ignore[union-attr]

        self._call(begin())

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _listen(self) -> asyncssh.SSHAcceptor:
        is_limited = self._sessions is not None
        run = partial(_run, self._order, self._ends)
        return await asyncssh.listen(
            sock=self._guest.create_server(self._port),
            server_host_keys=[self.key, *self._other_keys],
            authorized_client_keys=asyncssh.import_authorized_keys(self._authorized),
            server_factory=lambda: _Server(
                self.connections, run, self._sessions or 0, self._too_much
            ),
            process_factory=None if is_limited else run,
            sftp_factory=False if is_limited else self._sftp,
            encoding=None,
            window=self._window,
        )

    def _too_much(self) -> Any:
        """What becomes of a command too many."""
        self.asked_too_much.set()
        if not self._is_mute:
            return False
        return self.connections[-1].create_server_channel(None), self._loop.create_future()

    def _order(self, asked: str | None) -> tuple[list[str], dict[str, str]]:
        """The program to run for a command, and its environment."""
        line = self._instead or asked or "exec sh"
        if _TOKEN_VARIABLE not in line:
            return ["/bin/sh", "-c", f"{self._before}\n{line}"], dict(os.environ)
        if self._programs is None:
            line = f"exit {_NO_OPENER}"
        # AF_VSOCK is the userspace guest's, and a program that would have the kernel's is killed.
        environment = preload_environment(Path(self._guest.transport.directory))
        others = "" if self._has_only else f":{environment['PATH']}"
        environment["PATH"] = f"{self._programs}{others}"
        return [sys.executable, "-c", _GUARDED, line], environment

    async def _end(self) -> None:
        assert self._server
        self._server.close()
        await self._server.wait_closed()
        for connection in self.connections:
            connection.abort()
            await connection.wait_closed()
        others = asyncio.all_tasks() - {asyncio.current_task()} - self._ends
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # A cancelled command has begun this, and so may others have before.
        await asyncio.gather(*self._ends)
        for _ in range(3):  # turns of the loop in which pipes are closed
            await asyncio.sleep(0)


class _Server(asyncssh.SSHServer):
    """Counts connections; asked for commands only where their number is limited."""

    def __init__(
        self,
        connections: list[asyncssh.SSHServerConnection],
        run: Any,
        sessions: int,
        too_much: Callable[[], Any],
    ) -> None:
        self._connections = connections
        self._run = run
        self._sessions = sessions
        self._too_much = too_much

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Keep it, to be ended with the server."""
        self._connections.append(conn)
        self._connection = conn

    def session_requested(self) -> Any:
        """Refuse what is too much, as sshd does by its MaxSessions, or leave it without an answer."""
        self._sessions -= 1
        if self._sessions < 0:
            return self._too_much()
        channel = self._connection.create_server_channel(None)
        return channel, asyncssh.SSHServerProcess(self._run, None, 3, False)

    def connection_requested(self, *_: object) -> bool:
        """Forward to any port, as sshd does by default."""
        return True

    def unix_connection_requested(self, *_: object) -> bool:
        """Forward to any Unix socket."""
        return True

    def server_requested(self, *_: object) -> bool:
        """Listen at any port."""
        return True

    def unix_server_requested(self, *_: object) -> bool:
        """Listen at any Unix socket."""
        return True


async def _run(
    order: _Order, ends: set[asyncio.Task[Any]], session: asyncssh.SSHServerProcess[bytes]
) -> None:
    pipe = asyncio.subprocess.PIPE
    words, environment = order(session.command)
    process = await asyncio.create_subprocess_exec(
        *words,
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        start_new_session=True,
    )
    try:
        feeding = asyncio.create_task(_copy(session.stdin, process.stdin))
        await asyncio.gather(
            _copy(process.stdout, session.stdout), _copy(process.stderr, session.stderr)
        )
        code = await process.wait()
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and the loop has not heard of it
                os.killpg(process.pid, signal.SIGKILL)
            # Read to the end, which closes the pipes. A task of its own is not cancelled with the command.
            end = asyncio.create_task(process.communicate())
            ends.add(end)
            end.add_done_callback(ends.discard)
            await asyncio.shield(end)
        else:
            # It may have ended before a child of it that has its pipes, and without reading all.
            assert process.stdin
            if process.stdin.transport.get_write_buffer_size():
                process.stdin.transport.abort()
            process._transport.close()  # type: ignore[attr-defined]
    if code < 0:
        session.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
    else:
        session.exit(code)


async def _copy(source: Any, sink: Any) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        if isinstance(sink, asyncio.StreamWriter):
            sink.close()
    except (BrokenPipeError, ConnectionResetError, asyncssh.ConnectionLost):
        return  # the other side reads no more


def serving(guest: Guest, **options: Any) -> SshServer:
    """An SSH server in a guest that takes this user's key, to be started."""
    return SshServer(guest, Identity.of_user().public_key(), **options)

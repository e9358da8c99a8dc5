"""A session with a guest: its sshd, reached over vsock, with this user's key and the guest's pinned host key.

`guest_session` is what programs call. What a session returns are asyncssh's objects; only connecting, trust and the
words of errors are ours.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vsock import aio
from vsock._socket.transport import ConnectOptions, Transport, transport_for
from vsock._system.text import printable
from vsock.address import as_target
from vsock.errors import (
    ConnectRefused,
    ConnectTimeout,
    CopyError,
    HostKeyChanged,
    KeyRefused,
    SessionError,
    missing_extra,
)
from vsock.ssh.command_line import Command, command_line
from vsock.ssh.host_keys import HostKey, HostKeys
from vsock.ssh.hosts import Host, parse_host, pinned_as
from vsock.ssh.identity import Identity
from vsock.ssh.process_groups import ProcessGroups
from vsock.transports import SwitchTransport

try:
    import asyncssh
    from asyncssh.packet import PacketDecodeError
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "a session with a guest", "ssh") from None

if TYPE_CHECKING:
    import socket

    from vsock.ssh.blocking import BlockingSession
    from vsock.ssh.copying import CopyResult, Progress

__all__ = [
    "DEFAULT_USER",
    "LOGIN_SECONDS",
    "SSH_PORT",
    "GuestSession",
    "guest_session",
]

SSH_PORT: Final = 22
"""Where sshd listens, on vsock as on TCP; systemd 256 and later make it listen there."""

DEFAULT_USER: Final = "root"
"""Whom systemd's credential `ssh.authorized_keys.root` gives our key."""

LOGIN_SECONDS: Final = 60.0
"""How long connecting and logging in may take: the first time, sshd of an emulated guest computes for 20 seconds."""

_CLOSE_SECONDS: Final = 5.0
"""How long a guest may take for what is on its way to it when the session is closed."""

_LEAVING_SECONDS: Final = 1.0
"""The same when the task that closes it was cancelled, as by Ctrl-C."""

_LOOK_SECONDS: Final = 0.02

_LONGEST_REASON: Final = 200

_OTHERS: Final = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    *("rsa-sha2-512", "rsa-sha2-256"),
)
"""Kinds of host keys, of which every sshd has one."""

LocalPath = str | os.PathLike[str]


def guest_session(
    guest: str | int,
    *,
    user: str = DEFAULT_USER,
    port: int = SSH_PORT,
    timeout: float = LOGIN_SECONDS,
    transport: Transport | str | None = None,
    forward_agent: bool = False,
) -> "GuestSession":
    """Return a session with a guest, to be opened by `async with`, or by `with` in programs without asyncio.

    Args:
        guest: a guest of the switch by name or CID, or another form that `vsock ssh-proxy` reads.
        user: a user of the guest.
        port: the vsock port of its sshd.
        timeout: seconds that connecting and logging in may take.
        transport: where to connect from, as for `vsock.create_connection`.
        forward_agent: let programs in the guest use this user's ssh-agent (`$SSH_AUTH_SOCK`).
    """
    return GuestSession(
        parse_host(str(guest)),
        user=user,
        port=port,
        timeout=timeout,
        transport=transport,
        forward_agent=forward_agent,
    )


class GuestSession:
    """A session with a guest; `guest_session` makes one.

    Opening it raises:
        NoSwitch, NoSuchGuest, ConnectTimeout: as connecting does.
        ConnectRefused: the guest runs, and nothing listens on its port.
        HostKeyChanged: the guest has another host key than the one pinned under its name.
        KeyRefused: its sshd does not take this user's key.
        SessionError: something else on the way to a session failed; the message says which side.
    """

    def __init__(
        self,
        host: Host,
        *,
        user: str,
        port: int,
        timeout: float,
        transport: Transport | str | None,
        forward_agent: bool,
    ) -> None:
        self._host = host
        self._user = user
        self._port = port
        self._timeout = timeout
        self._transport = transport
        self._forward_agent = forward_agent
        self._connection: asyncssh.SSHClientConnection | None = None
        self._groups: ProcessGroups | None = None
        self._takes_more = asyncio.Event()
        self._route: tuple[SwitchTransport, int] | None = None
        self._blocking: BlockingSession | None = None

    @property
    def name(self) -> str:
        """The guest, as it was named."""
        return self._host.place

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        """The connection of asyncssh, for everything that has no method here.

        Raises:
            SessionError: the session is not open.
        """
        if self._connection is None:
            raise SessionError(errno.ENOTCONN, f"the session with {self.name} is not open")
        return self._connection

    @property
    def route(self) -> tuple[SwitchTransport, int] | None:
        """The switch through which the guest is reached, and its CID there; None if it is reached in another way."""
        return self._route

    async def __aenter__(self) -> Self:
        self._connection = await self._open()
        self._groups = ProcessGroups(self._connection)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __enter__(self) -> "BlockingSession":
        from vsock.ssh.blocking import BlockingSession

        self._blocking = BlockingSession(self)
        return self._blocking.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._blocking:
            self._blocking.__exit__(kind, error, traceback)

    async def close(self) -> None:
        """End the session and the programs that it has started on a terminal. A second call has no effect."""
        connection, self._connection = self._connection, None
        if not connection:
            return
        try:
            async with asyncio.timeout(_LEAVING_SECONDS if cancellations() else _CLOSE_SECONDS):
                if self._groups:
                    await self._groups.finish()
                connection.close()
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()  # the guest takes no more of what we sent
            await connection.wait_closed()

    async def run(
        self,
        command: Command,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = False,
        **options: Any,
    ) -> asyncssh.SSHCompletedProcess:
        """Run a command and return what it wrote and how it ended.

        Args:
            command: a line for the user's shell, or a program with its arguments.
            env: variables of its environment.
            cwd: its directory.
            check: raise asyncssh.ProcessError if it ends otherwise than with 0; 127 is "command not found".
            options: as of `asyncssh.SSHClientConnection.run` (`input`, `timeout`, `encoding=None` for bytes, …).

        Raises:
            SessionError: the session ended before the command did.
            TimeoutError: the command has not ended, or sshd has not even started it, within `timeout`.
        """
        timeout = options.pop("timeout", None)
        clock = asyncio.get_running_loop().time
        begun = clock()
        process = await self.open_process(
            command, env=env, cwd=cwd, start_timeout=timeout, **options
        )
        left = None if timeout is None else max(timeout - (clock() - begun), 0)
        with translated(self.name):
            try:
                done = await process.wait(check=check, timeout=left)
            except asyncssh.ProcessError as error:
                if isinstance(error, asyncssh.TimeoutError):
                    end(process)
                raise
            except BaseException:
                end(process)
                raise
        if done.returncode is None:
            raise SessionError(
                errno.ECONNRESET, f"the session with {self.name} ended before the command did"
            )
        return done

    async def open_process(
        self,
        command: Command | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        start_timeout: float | None = None,
        **options: Any,
    ) -> asyncssh.SSHClientProcess[Any]:
        """Start a command, or the user's shell, and return it while it runs.

        Args:
            command: as for `run`; None for a shell.
            env: variables of its environment; not for a shell.
            cwd: its directory; not for a shell.
            start_timeout: seconds that sshd may take to start it; it may answer all else, and never this.
            options: as of `asyncssh.SSHClientConnection.create_process` (`term_type`, `encoding`, …).

        Raises:
            SessionError: sshd does not start it, or not in time (which is a TimeoutError, too).
        """
        line: Any = None
        mark = None
        connection, groups = self.connection, self._groups
        if command is not None:
            text = command_line(command, env=env, cwd=cwd)
            if groups and "term_type" not in options:
                text, mark = groups.begin(text)
            # Bytes, because a command may have any; asyncssh takes them too.
            line = os.fsencode(text)
        with translated(self.name):
            try:
                async with asyncio.timeout(start_timeout) as limit:
                    process = await connection.create_process(line, **options)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise _NotStartedError(
                    errno.ETIMEDOUT,
                    f"sshd of {self.name} started no command within {start_timeout:g} s",
                ) from None
        if groups and mark:
            groups.watch(process, mark)
        return process

    async def drain(self) -> None:
        """Wait while the connection has more to send than its buffer should hold.

        `drain` of a program's standard input waits for the window of its channel, and no longer: a guest may grant
        a window of 4 GiB and read nothing.
        """
        if self._connection:
            await self._takes_more.wait()
        # During a key exchange asyncssh keeps what is to be sent, and the guest may never finish it.
        # It tells nobody when that is over.
        while self._connection and self._connection._deferred_packets:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    async def sftp(self) -> asyncssh.SFTPClient:
        """Return a client for the guest's files.

        Raises:
            SessionError: its sshd has no SFTP, or the session ended.
        """
        with translated(self.name):
            try:
                return await self.connection.start_sftp_client()
            except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
                raise SessionError(
                    errno.EPROTONOSUPPORT,
                    f"sshd of {self.name} has no SFTP: is its sftp-server installed?",
                ) from error

    async def copy_in(
        self,
        source: LocalPath | Sequence[LocalPath],
        destination: str,
        *,
        progress: "Callable[[Progress], object] | None" = None,
        resume: bool = False,
        verify: bool = True,
        encrypted: bool = False,
    ) -> "CopyResult":
        """Copy files and folders of the host into the guest; links are copied as links.

        Args:
            source: a path, or several.
            destination: a folder of the guest, or the new name of one source.
            progress: called a few times in a second, in the session's thread.
            resume: go on with what a broken copy of the same file has left.
            verify: compare each file with what was read.
            encrypted: let ssh carry the data, and not a plain vsock connection of the guest to this process.

        Raises:
            CopyError: not everything was copied; `failures` says what and why. What is copied is whole.
            SessionError: the session ended during the copy.
            UsageError: several sources, and the destination is no folder.
        """
        from vsock.ssh.copying import Copier
        from vsock.ssh.copying.guest import GuestSide
        from vsock.ssh.copying.host import HostSide, has_large_file

        copier = Copier(resume=resume, verify=verify, progress=progress)
        paths, host = _paths(source), HostSide()
        streams = has_large_file(paths)
        guest = await GuestSide.open(self, encrypted=encrypted, streams=streams)
        try:
            sources = [(host, path) for path in paths]
            await copier.copy(sources, guest, os.fsencode(destination))
        finally:
            await guest.close()
        return _without_failures(copier.result(guest))

    async def copy_out(
        self,
        source: str | Sequence[str],
        destination: LocalPath,
        *,
        progress: "Callable[[Progress], object] | None" = None,
        resume: bool = False,
        verify: bool = True,
        encrypted: bool = False,
    ) -> "CopyResult":
        """Copy files and folders of the guest to the host; the arguments and errors are as of `copy_in`."""
        from vsock.ssh.copying import Copier
        from vsock.ssh.copying.guest import GuestSide
        from vsock.ssh.copying.host import HostSide

        copier = Copier(resume=resume, verify=verify, progress=progress)
        guest, host = await GuestSide.open(self, encrypted=encrypted), HostSide()
        try:
            sources = [(guest, path) for path in _paths(source)]
            await copier.copy(sources, host, os.fsencode(destination))
        finally:
            await guest.close()
        return _without_failures(copier.result(guest))

    async def _open(self) -> asyncssh.SSHClientConnection:
        self._takes_more = asyncio.Event()
        self._takes_more.set()
        identity = Identity.of_user()
        await asyncio.to_thread(identity.make)
        try:
            async with asyncio.timeout(self._timeout):
                sock = await self._connect()
                try:
                    pinned = await asyncio.to_thread(
                        pinned_as, self._host, self._port, self._transport
                    )
                    trust = _Trust(HostKeys.of_user(), pinned)
                    return await self._log_in(sock, identity, trust)
                except BaseException:
                    sock.close()
                    raise
        except ConnectTimeout:
            raise
        except TimeoutError:
            raise SessionError(
                errno.ETIMEDOUT,
                f"sshd of {self.name} did not let us in within {self._timeout:g} s: is the guest busy, or stopped?",
            ) from None

    async def _connect(self) -> "socket.socket":
        target = as_target(self._host.address(self._port))
        where = transport_for(target, self._transport)
        try:
            sock = await aio.run(where.connect(target, ConnectOptions()))
            if isinstance(where, SwitchTransport):
                self._route = where, sock.getpeername().cid
            return sock
        except ConnectTimeout as error:
            raise ConnectTimeout(
                error.errno, f"{self.name} does not answer: is it running? see `vsock guest ls`"
            ) from None
        except ConnectRefused as error:
            raise ConnectRefused(
                error.errno,
                f"nobody listens on port {self._port} of {self.name}: is its sshd up? "
                f"`vsock guest setup {self.name}` says how a guest listens there",
            ) from None

    async def _log_in(
        self, sock: "socket.socket", identity: Identity, trust: "_Trust"
    ) -> asyncssh.SSHClientConnection:
        agent = os.environ.get("SSH_AUTH_SOCK") if self._forward_agent else None
        if self._forward_agent and not agent:
            raise SessionError(
                errno.ENOENT, "there is no ssh-agent to forward: SSH_AUTH_SOCK is not set"
            )
        pinned = [asyncssh.import_public_key(str(key)) for key in trust.pinned]
        try:
            return await asyncssh.connect(
                self.name,
                self._port,
                sock=sock,
                config=None,  # a session is what its arguments say, whatever is in ~/.ssh/config
                username=self._user,
                client_keys=[str(identity.private_file)],
                client_factory=lambda: _Client(trust, self._takes_more),
                known_hosts=(pinned, [], []),
                # Not only those of pinned keys: a guest that has none of these has another key than the pinned one.
                # No certificates: a name is trusted by its key alone.
                server_host_key_algs=[*_algorithms(pinned), *_OTHERS],
                agent_path=agent,
                agent_forwarding=self._forward_agent,
                compression_algs=None,
            )
        except asyncssh.PermissionDenied:
            raise KeyRefused(
                errno.EACCES,
                f"sshd of {self.name} does not take the key in {identity.public_file} for user {self._user}: "
                f"`vsock guest setup {self.name}` says how it gets there",
            ) from None
        except (asyncssh.Error, PacketDecodeError, OSError) as error:
            if trust.refusal:
                raise trust.refusal from None
            raise SessionError(
                errno.ECONNABORTED, f"{self.name} gave no session: {_reason(error)}"
            ) from error


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn what asyncssh says of a session with `name` into a SessionError; how a command ended stays as it is."""
    try:
        yield
    except asyncssh.ProcessError:
        raise
    except asyncssh.ChannelOpenError as error:
        raise SessionError(
            errno.ECONNABORTED, f"sshd of {name} starts no command: {_reason(error)}"
        ) from error
    except (asyncssh.Error, PacketDecodeError) as error:
        raise SessionError(
            errno.ECONNRESET, f"the session with {name} ended: {_reason(error)}"
        ) from error


def cancellations() -> int:
    """How often the running task was cancelled; what it still does is on the way out."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def end(process: asyncssh.SSHClientProcess[Any]) -> None:
    """Give a command up: SIGTERM, and no more of its output is taken."""
    with suppress(OSError):  # it has ended
        process.terminate()
    process.close()


def _reason(error: Exception) -> str:
    said = error.reason if isinstance(error, asyncssh.Error) else str(error)
    return printable(said, _LONGEST_REASON).rstrip(".") or "the connection ended"


def _paths(named: LocalPath | Sequence[LocalPath]) -> list[bytes]:
    several = [named] if isinstance(named, str | os.PathLike) else named
    return [os.fsencode(path) for path in several]


def _without_failures(result: "CopyResult") -> "CopyResult":
    if not result.failed:
        return result
    more = f" (and {result.failed - 1} more)" if result.failed > 1 else ""
    error = CopyError(errno.EIO, f"{result.failures[0]}{more}")
    error.failures = result.failures
    raise error


class _NotStartedError(SessionError, TimeoutError):
    """sshd has not started a command in time."""


class _Trust:
    """What is known of a guest's host key, and what is to be said if it is another."""

    def __init__(self, keys: HostKeys, name: str) -> None:
        self._keys = keys
        self._name = name
        self.pinned = keys.of(name)
        self.refusal: HostKeyChanged | None = None

    def takes(self, key: HostKey) -> bool:
        """Pins the key if it is the first."""
        try:
            self._keys.check(self._name, key)
        except HostKeyChanged as error:
            self.refusal = error
            return False
        return True


def _algorithms(keys: list[asyncssh.SSHKey]) -> list[str]:
    return [name.decode() for key in keys for name in key.sig_algorithms]


class _Client(asyncssh.SSHClient):
    def __init__(self, trust: _Trust, takes_more: asyncio.Event) -> None:
        self._trust = trust
        self._takes_more = takes_more

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Take the transport's word of when it is full, which asyncssh does nothing with."""
        conn.pause_writing = self._takes_more.clear  # type: ignore[method-assign]
        conn.resume_writing = self._takes_more.set  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any more: what is written now fails."""
        self._takes_more.set()

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Asked of each host key that is not pinned."""
        return self._trust.takes(HostKey.parse(key.export_public_key().decode()))

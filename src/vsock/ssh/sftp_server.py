"""How a guest's SFTP server is reached: its sftp-server behind a plain data connection, or that of its sshd over ssh.

For copies and for mounts. What is said over it is their matter.
"""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import asyncssh

from vsock.errors import SessionError
from vsock.ssh.data_connection import DataConnection, open_data_connection

if TYPE_CHECKING:
    from vsock.ssh.session import GuestSession

__all__ = ["answering", "join_over_ssh", "notes", "plain_server", "ssh_server"]

_START_SECONDS: Final = 60.0
"""How long the start may take; sshd of an emulated guest on a busy machine needs seconds."""

_PIECE: Final = 1 << 17

_SERVERS: Final = (
    "sftp-server",
    *("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"),
    *("/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server", "/usr/lib64/misc/sftp-server"),
)
"""Where the distributions have OpenSSH's: Debian, Fedora, Alpine and Arch, others, Gentoo."""


async def plain_server(session: "GuestSession") -> DataConnection:
    """Start the guest's sftp-server behind a plain connection, with the rights of the session's user.

    Raises:
        DataConnectionError: there is no such connection; ssh works as before.
    """
    return await open_data_connection(session, _SERVERS)


async def ssh_server(
    session: "GuestSession",
) -> "tuple[asyncssh.SSHWriter[bytes], asyncssh.SSHReader[bytes]]":
    """Start the SFTP of the guest's sshd; it raises what asyncssh does."""
    writer, reader, _ = await session.connection.open_session(subsystem="sftp", encoding=None)
    return writer, reader


async def join_over_ssh(
    sock: socket.socket, writer: "asyncssh.SSHWriter[bytes]", reader: "asyncssh.SSHReader[bytes]"
) -> None:
    """Copy between a non-blocking socket and the streams of `ssh_server`, until both directions have ended.

    Raises:
        SessionError: one side was lost; both directions are ended.
    """
    loop = asyncio.get_running_loop()

    async def there() -> None:
        while piece := await loop.sock_recv(sock, _PIECE):
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async def back() -> None:
        while piece := await reader.read(_PIECE):
            await loop.sock_sendall(sock, piece)
        with suppress(OSError):  # its other end has gone first
            sock.shutdown(socket.SHUT_WR)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(there())
            group.create_task(back())
    except* (asyncssh.Error, OSError) as errors:
        raise SessionError(errno.ECONNRESET, "the session with the guest ended") from errors


@asynccontextmanager
async def answering(session: "GuestSession") -> AsyncIterator[None]:
    """The block starts `ssh_server`: give it a deadline, and asyncssh's errors our words.

    Raises:
        SessionError: there is no SFTP.
    """
    try:
        async with asyncio.timeout(_START_SECONDS):
            yield
    except (asyncssh.Error, ValueError, OSError) as error:
        if isinstance(error, SessionError):
            raise
        raise SessionError(
            errno.EPROTONOSUPPORT,
            f"sshd of {session.name} has no SFTP: is its sftp-server installed?",
        ) from error


def notes(name: str, *, refused: int, is_late: bool = False) -> Iterator[str]:
    """What the user is told of how the data connection of a guest came about; the arguments are as of its error."""
    if refused:
        yield f"{refused} other connections to the port for the data of {name} were closed"
    if is_late:
        yield (
            f"ssh carried the data of {name}, which was told to open a connection, and did not in time: "
            "--encrypted does not wait for that"
        )

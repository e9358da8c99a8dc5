"""SFTP over a plain data connection: the guest's sftp-server behind it, and asyncssh's client on this side.

asyncssh's client wants the reader and the writer of an SSH channel. These here have the few methods of them that it
calls, over a stream of asyncio; `start_sftp_client` is not part of its documented API, so a test of each change of
asyncssh is `tests/ssh/test_plain.py`.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

import asyncssh
from asyncssh.packet import PacketDecodeError
from asyncssh.sftp import start_sftp_client

from vsock.errors import SessionError
from vsock.ssh.data_connection import (
    DataConnection,
    DataConnectionError,
    open_data_connection,
)

if TYPE_CHECKING:
    from vsock.ssh.session import GuestSession

__all__ = ["plain_sftp"]

_SERVERS: Final = (
    "sftp-server",
    *("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server"),
    *("/usr/lib/ssh/sftp-server", "/usr/libexec/sftp-server", "/usr/lib64/misc/sftp-server"),
)
"""Where the distributions have OpenSSH's: Debian, Fedora, Alpine and Arch, others, Gentoo."""

_ANSWER_SECONDS: Final = 30.0
_SFTP_VERSION: Final = 3

_SMALL: Final = 4096
"""Bytes of a request that is sent together with others."""


async def plain_sftp(session: "GuestSession") -> tuple[DataConnection, asyncssh.SFTPClient]:
    """Start the guest's sftp-server, with the rights of the session's user, and return a client of it.

    Raises:
        DataConnectionError: there is no data connection, or no sftp-server behind it.
    """
    data = await open_data_connection(session, _SERVERS)
    channel = _Channel(session, data)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            client = await start_sftp_client(
                session.connection,
                asyncio.get_running_loop(),
                "strict",
                cast("asyncssh.SSHReader[bytes]", channel),
                cast("asyncssh.SSHWriter[bytes]", channel),
                "utf-8",
                "strict",
                _SFTP_VERSION,
            )
    except (asyncssh.Error, PacketDecodeError, ValueError, OSError) as error:
        data.abort()
        if isinstance(error, SessionError):
            raise
        raise DataConnectionError("no sftp-server answers on its data connection") from error
    except BaseException:
        data.abort()
        raise
    return data, client


class _Channel:
    """What asyncssh's client calls of a reader, a writer and a channel; packets are bounded by the client."""

    def __init__(self, session: "GuestSession", data: DataConnection) -> None:
        self.logger = session.connection.logger
        self.channel = self
        self._data = data
        self._small: list[bytes] = []

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """By the server's version it knows in which order OpenSSH takes the names of a link."""
        return "OpenSSH" if name == "server_version" else default

    async def readexactly(self, size: int) -> bytes:
        """Read so many bytes; IncompleteReadError, which is an EOFError, if the guest closes before."""
        return await self._data.reader.readexactly(size)

    def write(self, data: bytes) -> None:
        """Send, small requests together; how many are on their way at once is bounded by the copy."""
        if len(data) > _SMALL:
            self._flush()
            self._data.writer.write(data)
            return
        if not self._small:
            asyncio.get_running_loop().call_soon(self._flush)
        self._small.append(data)

    def _flush(self) -> None:
        if self._small:
            self._data.writer.write(b"".join(self._small))
            self._small.clear()

    def write_eof(self) -> None:
        """No more requests: the server ends, and closes."""
        self._flush()
        self._data.writer.write_eof()

    def close(self) -> None:
        """Close it."""
        self._data.writer.close()

    def is_closing(self) -> bool:
        """Whether nothing more is sent."""
        return self._data.writer.is_closing()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await self._data.wait_closed()

"""SFTP over a plain data connection, to the guest's sftp-server behind it, and over ssh, both with asyncssh's client.

asyncssh's client wants the reader and the writer of an SSH channel. These here have the few methods of them that it
calls, over a stream of asyncio. They also bound a packet: asyncssh itself takes 4 MiB, of which a list of names needs
thirty times as much memory.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.packet import PacketDecodeError
from asyncssh.sftp import start_sftp_client

from vsock.errors import SessionError
from vsock.ssh.data_connection import DataConnection, DataConnectionError
from vsock.ssh.sftp_server import plain_server, ssh_server

if TYPE_CHECKING:
    from vsock.ssh.session import GuestSession

__all__ = ["plain_sftp", "ssh_sftp"]

_ANSWER_SECONDS: Final = 30.0
_SFTP_VERSION: Final = 3

_LARGEST_PACKET: Final = (256 << 10) + 1024
"""Bytes; OpenSSH's sftp-server sends 256 KiB at most, and other servers not many more than were asked for."""

_SMALL: Final = 4096
"""Bytes of a request that is sent together with others."""


async def plain_sftp(session: "GuestSession") -> tuple[DataConnection, asyncssh.SFTPClient]:
    """Start the guest's sftp-server, with the rights of the session's user, and return a client of it.

    Raises:
        DataConnectionError: there is no data connection, or no sftp-server behind it.
    """
    data = await plain_server(session)
    channel = _Channel(session, data)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            client = await _client(session, channel, channel)
    except (asyncssh.Error, PacketDecodeError, ValueError, OSError) as error:
        data.abort()
        if isinstance(error, SessionError):
            raise
        raise DataConnectionError("no sftp-server answers on its data connection") from error
    except BaseException:
        data.abort()
        raise
    return data, client


async def ssh_sftp(session: "GuestSession") -> asyncssh.SFTPClient:
    """Start the SFTP of the guest's sshd, and return a client of it; it raises what asyncssh does."""
    writer, reader = await ssh_server(session)
    return await _client(session, _BoundedReader(reader), writer)


async def _client(session: "GuestSession", reader: Any, writer: Any) -> asyncssh.SFTPClient:
    # Not part of asyncssh's documented API: tests/ssh/test_plain.py and test_copying.py show whether a new
    # release of asyncssh still has it as it is used here.
    return await start_sftp_client(
        session.connection,
        asyncio.get_running_loop(),
        "strict",
        reader,
        writer,
        "utf-8",
        "strict",
        _SFTP_VERSION,
    )


def _check_length(size: int) -> None:
    if size > _LARGEST_PACKET:
        raise asyncssh.SFTPBadMessage("the guest sends an SFTP packet that is too large")


class _BoundedReader:
    """What asyncssh's client calls of the reader of an SSH channel."""

    def __init__(self, reader: "asyncssh.SSHReader[bytes]") -> None:
        self.logger = reader.logger
        self.get_extra_info = reader.get_extra_info
        self._reader = reader

    async def readexactly(self, size: int) -> bytes:
        """Read so many bytes, unless they are more than a packet may have."""
        _check_length(size)
        return await self._reader.readexactly(size)


class _Channel:
    """What asyncssh's client calls of a reader, a writer and a channel, over a data connection."""

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
        _check_length(size)
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

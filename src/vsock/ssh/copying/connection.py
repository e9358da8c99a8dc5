"""A guest's SFTP server as a copy asks it: how long an answer may take, what its errors mean, and how it is left.

What is asked, and whether an answer makes sense, is the matter of `guest`.
"""

import asyncio
import errno
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import asyncssh

from vsock.errors import SessionError
from vsock.ssh.copying.sides import EntryError, shown
from vsock.ssh.session import cancellations

if TYPE_CHECKING:
    from vsock.ssh.data_connection import DataConnection
    from vsock.ssh.session import GuestSession

__all__ = [
    "ANSWER_SECONDS",
    "NO_PERMISSION",
    "NO_SPACE",
    "NO_SUCH",
    "GuestConnection",
    "seconds_for",
]

ANSWER_SECONDS: Final = 60.0
"""How long one answer may take; sshd of an emulated guest on a busy machine needs seconds."""

_LEAST_BYTES_PER_SECOND: Final = 1 << 20
"""How fast a guest must sum up a file, or write it to its disk, at least."""

_LEAVING_SECONDS: Final = 2.0
"""How long all answers together may take that a cancelled copy still waits for, so that Ctrl-C ends one of a silent guest."""

NO_SUCH: Final = "no such file or folder"
NO_PERMISSION: Final = "permission denied"
NO_SPACE: Final = "no space left on the guest's disk"

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
    asyncssh.SFTPNoSuchFile: NO_SUCH,
    asyncssh.SFTPPermissionDenied: NO_PERMISSION,
    asyncssh.SFTPNoSpaceOnFilesystem: NO_SPACE,
}


def seconds_for(length: int) -> float:
    """How long the digest of so many bytes may take, or to see them onto the disk."""
    return ANSWER_SECONDS + length / _LEAST_BYTES_PER_SECOND


class GuestConnection:
    """A connection to the SFTP server of a guest, with asyncssh's client of it.

    Args:
        session: the session that it belongs to.
        client: the client.
        data: the plain connection that carries it; None if ssh does.
    """

    def __init__(
        self,
        session: "GuestSession",
        client: asyncssh.SFTPClient,
        data: "DataConnection | None" = None,
    ) -> None:
        self.name = session.name
        self.client = client
        self._session = session
        self._data = data
        self._opener = asyncio.current_task()
        self._cancellations = cancellations()
        self._left_at: float | None = None
        """When a cancelled copy waits no more, as of the loop's clock."""

    def text(self, path: bytes) -> str:
        """The path behind the guest's name."""
        return f"{shown(self.name.encode())}:{shown(path)}"

    async def ask(self, answer: Awaitable[_T], path: bytes, seconds: float | None = None) -> _T:
        """Wait for an answer about a path, so long at most.

        Raises:
            EntryError: the guest says no, or what it must not say.
            SessionError: the session ended, or there is no answer.
        """
        seconds = seconds or ANSWER_SECONDS
        try:
            async with asyncio.timeout(self._patience(seconds)):
                return await answer
        except TimeoutError:
            self._give_up()
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

    def _was_cancelled(self) -> bool:
        """Whether the running task was, since this was opened: a copy may begin on the way out of something else."""
        before = self._cancellations if asyncio.current_task() is self._opener else 0
        return cancellations() > before

    def _patience(self, seconds: float) -> float:
        """How long an answer may take now, which is no longer than the way out if the task was cancelled."""
        now = asyncio.get_running_loop().time()
        if self._left_at is None and self._was_cancelled():
            self._left_at = now + _LEAVING_SECONDS
        return seconds if self._left_at is None else max(0.0, min(seconds, self._left_at - now))

    def _give_up(self) -> None:
        """End a session whose guest is silent, because to close it would wait for its answers.

        A copy that was cancelled leaves that to the owner of the session, who may have other uses of it.
        """
        if self._left_at is not None:
            return
        if self._data:
            self._data.abort()
        with suppress(SessionError):  # it is closed already
            self._session.connection.abort()

    async def close_file(self, file: "asyncssh.SFTPClientFile") -> None:
        """Close a file of which all that was written has been answered. If the session has ended, so has the file."""
        with suppress(asyncssh.Error, OSError, ValueError, TimeoutError):
            async with asyncio.timeout(self._patience(ANSWER_SECONDS)):
                await file.close()

    async def close(self) -> None:
        """End SFTP, not the session, unless the guest does not answer."""
        self.client.exit()
        try:
            async with asyncio.timeout(self._patience(ANSWER_SECONDS)):
                await self.client.wait_closed()
        except TimeoutError:
            self._give_up()
        if self._data:
            self._data.abort()

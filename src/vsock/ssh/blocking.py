"""A session for programs without asyncio: the methods of `vsock.ssh.session.GuestSession`, which block here.

The session lives in an event loop of its own, in a thread.
"""

import asyncio
import errno
import threading
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from vsock.errors import SessionError

if TYPE_CHECKING:
    from asyncssh import SSHCompletedProcess

    from vsock.ssh.command_line import Command
    from vsock.ssh.copying import CopyResult
    from vsock.ssh.session import GuestSession, LocalPath

__all__ = ["BlockingSession"]

_T = TypeVar("_T")


class BlockingSession:
    """An open session with a guest; ``with vsock.guest_session(…) as guest`` makes one.

    Opening it, and each method, raises what `GuestSession` does.
    """

    def __init__(self, session: "GuestSession") -> None:
        self._session = session
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vsock-session", daemon=True
        )

    @property
    def name(self) -> str:
        """The guest, as it was named."""
        return self._session.name

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._session.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session. A second call has no effect."""
        if not self._loop.is_closed():
            try:
                self._call(self._session.close())
            finally:
                self._end()

    def run(self, command: "Command", **options: Any) -> "SSHCompletedProcess":
        """Run a command and return what it wrote and how it ended; as `GuestSession.run`."""
        return self._call(self._session.run(command, **options))

    def copy_in(
        self, source: "LocalPath | Sequence[LocalPath]", destination: str, **options: Any
    ) -> "CopyResult":
        """Copy files and folders of the host into the guest; as `GuestSession.copy_in`."""
        return self._call(self._session.copy_in(source, destination, **options))

    def copy_out(
        self, source: str | Sequence[str], destination: "LocalPath", **options: Any
    ) -> "CopyResult":
        """Copy files and folders of the guest to the host; as `GuestSession.copy_out`."""
        return self._call(self._session.copy_out(source, destination, **options))

    def _call(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        if self._loop.is_closed():
            coroutine.close()
            raise SessionError(errno.ENOTCONN, f"the session with {self.name} is not open")
        waits = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return waits.result()
        except BaseException:
            waits.cancel()  # Ctrl-C in this thread
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

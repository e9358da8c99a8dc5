"""Unix sockets that are not the switch's: those at ``unix:`` paths, and a hypervisor's (``hvsock:``).

A connect to one whose queue is full is told so by EAGAIN and cannot be polled for, blocking or not; so it is tried again. A
listener's file outlives its socket: ours is removed at close, and one that nobody listens at any more is replaced.
"""

import contextlib
import errno
import fcntl
import os
import socket as _socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vsock._green import Base as _Base
from vsock.errors import UsageError

_LONGEST_PAUSE: Final = 0.01


def connect(sock: _Base, path: str, seconds: float) -> None:
    """Connect a Unix socket; if its queue is full, go on for as many seconds.

    Raises:
        BlockingIOError: it was full all the time.
        OSError: as connect(2) says.
    """
    deadline = time.monotonic() + seconds
    pauses_left = pauses()
    try:
        os.set_blocking(sock.fileno(), False)
        while not connect_nowait(sock, path):
            left = deadline - time.monotonic()
            if left < 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            time.sleep(min(next(pauses_left), left))
    finally:
        os.set_blocking(sock.fileno(), _Base.gettimeout(sock) is None)


def connect_nowait(sock: _Base, path: str) -> bool:
    """Try to connect a non-blocking socket; tell whether there was room in the queue."""
    try:
        _Base.connect(sock, path)
    except BlockingIOError:
        return False
    return True


def pauses() -> Iterator[float]:
    """Yield how long to wait before each further attempt, in seconds."""
    pause = _LONGEST_PAUSE / 16
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Give the errors of a call on a Unix socket the path that it is about."""
    try:
        yield
    except BlockingIOError:  # of `connect`, about which callers know more
        raise
    except OSError as error:
        if error.errno is None:  # Python itself says that the path is too long
            raise UsageError(f"{path}: {error}") from None
        raise OSError(error.errno, os.strerror(error.errno), path) from None


class UnixListener(_Base):
    """A socket that listens at a path, and removes the file when it is closed.

    Args:
        path: where; what is there already is replaced if it is a socket at which nobody listens.
        type: `SOCK_STREAM` or `SOCK_SEQPACKET`.
        backlog: how many connections may wait.

    Raises:
        OSError: EADDRINUSE: somebody listens there, or it is another kind of file; else as bind(2) says.
        UsageError: the path is longer than a Unix socket's can be.
    """

    __slots__ = ("_file",)

    def __init__(self, path: str, type: int, backlog: int) -> None:  # noqa: A002 - as in socket.socket
        super().__init__(_socket.AF_UNIX, type)
        self._file: tuple[int, str, int] | None = None
        try:
            with naming(path), _alone_in(Path(path).parent):
                self._take(path)
                self.listen(backlog)
            self._file = (os.getpid(), path, os.lstat(path).st_ino)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket, and remove its file if that is still its own; a forked child leaves it."""
        file, self._file = self._file, None
        if file is not None and file[0] == os.getpid():
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(file[1]).st_ino == file[2]:
                    Path(file[1]).unlink()
        super().close()

    def _take(self, path: str) -> None:
        try:
            self.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_dead(path):
                raise
            Path(path).unlink()
            self.bind(path)


def _is_dead(path: str) -> bool:
    """Tell whether `path` is a socket at which nobody listens."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with _Base(_socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            _Base.connect(caller, path)
        except ConnectionRefusedError:
            return True
        except OSError:  # full, or of another type: somebody is there
            return False
    return False


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep others of our kind from this directory, so that none takes a socket for dead that does not listen yet."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # it may be enough for a socket all the same
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

"""The transport `unix`: plain Unix sockets at a path; and its addresses.

A listener's file outlives its socket: ours is removed at close, and one at which nobody listens any
more is replaced.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM
from typing import NamedTuple

from vsock._socket import socket
from vsock._socket.options import CONNECT_TIMEOUT
from vsock._socket.state import UNKNOWN
from vsock._socket.stream import StreamSocket
from vsock._socket.transport import ConnectOptions, ListenOptions, only_verbs
from vsock._system import unix
from vsock._system.green import Base, adapted
from vsock._system.waiting import Steps
from vsock.address import Address, Target
from vsock.errors import AddressError, UsageError, transport_error


class UnixAddress(NamedTuple):
    """A Unix stream socket at `path` (at most 107 bytes), used as it is."""

    path: str

    @property
    def transport(self) -> str:
        """This one."""
        return "unix"

    def __str__(self) -> str:
        """Return ``unix:PATH``."""
        return f"unix:{self.path}"


def parse(text: str) -> UnixAddress:
    """Read ``unix:/path`` or ``unix:///path``."""
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path.removeprefix("//")
    if not path or "\0" in path:
        raise AddressError(f"{text!r}: a path must follow 'unix:'")
    return UnixAddress(path)


class UnixTransport:
    """Unix sockets, at the paths that addresses name."""

    __slots__ = ()
    node = None

    def socket_class(self, kind: int, proto: int) -> type[socket]:
        """See `Transport`."""
        raise only_verbs("unix")

    def connect(self, address: Target, options: ConnectOptions) -> Steps[socket]:
        """See `Transport`: it is always a stream, and there is nothing to bind to."""
        sock = yield from connect(_path_of(address), address, deadline_of(options.timeout))
        return wrapped(sock, UNKNOWN, UNKNOWN)

    def listen(self, address: Target, options: ListenOptions) -> Base:
        """See `Transport`: these listeners do not end with a switch."""
        return adapted(UnixListener)(_path_of(address), options.type, options.backlog)

    def local_cid(self) -> int:
        """See `Transport`."""
        raise UsageError("a Unix socket has no CID")


def default() -> UnixTransport:
    """Return the transport."""
    return UnixTransport()


def _path_of(address: Target) -> str:
    if not isinstance(address, UnixAddress):
        raise AddressError(f"{address}: the transport 'unix' knows paths only")
    return address.path


def deadline_of(timeout: float | None) -> float:
    """Return until when the other side may answer; `timeout` is in seconds, by default as for VSOCK."""
    return time.monotonic() + (CONNECT_TIMEOUT if timeout is None else timeout)


def connect(path: str, address: Target, deadline: float) -> Steps[Base]:
    """Connect to the Unix stream socket at `path`, to which `address` leads, and return it non-blocking.

    Raises:
        ConnectTimeout: its queue was full until `deadline`.
        OSError: there is no such Unix socket.
    """
    sock = Base(AF_UNIX, SOCK_STREAM)
    try:
        sock.setblocking(False)
        with unix.naming(path):
            has_room = yield from unix.connect(sock, path, deadline)
        if not has_room:
            raise transport_error(errno.ETIMEDOUT, f"connect to {address}")
    except BaseException:
        sock.close()
        raise
    return sock


def wrapped(sock: Base, ours: Address, theirs: Address) -> socket:
    """Turn a non-blocking Unix stream into a `socket` that knows its addresses."""
    made = StreamSocket.of_connection(sock.detach(), SOCK_STREAM, ours=ours, theirs=theirs)
    made.setblocking(False)
    return made


class UnixListener(Base):
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
        super().__init__(AF_UNIX, type)
        self._file: tuple[int, str, int] | None = None
        try:
            with unix.naming(path), _alone_in(Path(path).parent):
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
    with Base(AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            Base.connect(caller, path)
        except ConnectionRefusedError:
            return True
        except OSError:  # its queue is full, or it is of another type: a program listens there
            return False
    return False


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Lock this directory against other listeners of this class, which might take a socket for dead that does not listen yet."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (
        PermissionError
    ):  # the directory cannot be read, but sockets may be made in it all the same
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)

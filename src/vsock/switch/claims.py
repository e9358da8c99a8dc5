"""Socket paths: whose they are, and how we take one without taking it from somebody.

A Unix socket outlives the process that bound it, so a name in the file system says nothing: it
may be a switch at work or the remains of a dead one. Two rules make taking it safe:

- A runtime directory belongs to the process that holds the lock on its `lock` file. The kernel
  drops the lock with the process, so what the lock's owner finds in there is stale.
- Any other path is tried: a socket that takes a connection is alive, and `SO_PEERCRED` says whose
  it is; one that refuses is stale and is removed.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from vsock.errors import TransportError, UsageError
from vsock.runtime import LONGEST_SOCKET_PATH, RuntimeFiles

__all__ = ["Owner", "RuntimeClaim", "clear_socket", "owner_of", "peer_of"]

_UCRED: Final = struct.Struct("3i")
_ALIVE_ERRORS: Final = frozenset({errno.EAGAIN, errno.EPROTOTYPE})


class Owner(NamedTuple):
    """A process that holds something we want."""

    pid: int
    uid: int
    command: str

    def __str__(self) -> str:
        """Return the process as a person would look for it."""
        return f"process {self.pid} ({self.command}, uid {self.uid})"


class RuntimeClaim:
    """Ownership of one runtime directory, from construction to `release`.

    Makes the directory (mode 0700) if need be and removes stale sockets of ours from it.

    Raises:
        TransportError: EADDRINUSE when another switch owns it, with its process; EACCES when it
            belongs to another user; else what the system said.
        UsageError: its path leaves no room for the name of a socket.
    """

    def __init__(self, directory: Path) -> None:
        self.files = RuntimeFiles(directory)
        _check_length(self.files.control)
        try:
            for folder in (directory, self.files.guests):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_ours(directory)
            self._lock = os.open(self.files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if isinstance(error, TransportError):
                raise
            hint = "; choose another one with --runtime-dir or VSOCK_RUNTIME_DIR"
            raise _world(error, f"cannot use the runtime directory {directory}", hint) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _lock_owner(self._lock)
            os.close(self._lock)
            raise TransportError(
                errno.EADDRINUSE,
                f"another switch runs in {directory}: {owner}; "
                "stop it or choose another directory with --runtime-dir",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        self._remove_sockets()

    def release(self) -> None:
        """Removes our sockets and gives the directory up; twice is harmless."""
        if self._lock < 0:
            return
        self._remove_sockets()
        os.close(self._lock)
        self._lock = -1

    def _remove_sockets(self) -> None:
        own = (self.files.stream, self.files.seqpacket, self.files.dgram, self.files.control)
        for path in (*own, *self.files.guests.iterdir()):
            if path.is_socket():
                path.unlink(missing_ok=True)


def clear_socket(path: Path) -> None:
    """Makes `path` free to be bound: a stale socket there is removed.

    Raises:
        TransportError: EADDRINUSE when a process listens there (it is named) or when something
            that is no socket has the name.
        UsageError: the path is too long for a Unix socket.
    """
    _check_length(path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TransportError(errno.EADDRINUSE, f"{path} exists and is not a socket; move it away")
    owner = owner_of(path)
    if owner:
        raise TransportError(errno.EADDRINUSE, f"{path} is in use by {owner}")
    path.unlink(missing_ok=True)


def owner_of(path: Path) -> Owner | None:
    """The process that listens at `path`, or None if the socket is stale or not there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as error:
            # A full queue or another socket type: somebody is there, but does not tell who.
            if error.errno in _ALIVE_ERRORS:
                return Owner(0, -1, "unknown")
            raise _world(error, f"cannot tell whether {path} is in use") from error
        return peer_of(probe)


def peer_of(connection: socket.socket) -> Owner:
    """The process at the other end of a Unix socket, as it was when it connected or listened."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return Owner(pid, uid, _command(pid))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "gone"


def _lock_owner(lock: int) -> str:
    """The owner as the lock file names it; it may be starting or stopping just now."""
    with suppress(OSError, ValueError):
        pid = int(os.pread(lock, 20, 0))
        return str(Owner(pid, Path(f"/proc/{pid}").stat().st_uid, _command(pid)))
    return "a process that does not tell its number"


def _check_ours(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid != os.geteuid():
        raise TransportError(
            errno.EACCES,
            f"the runtime directory {directory} belongs to uid {status.st_uid}; "
            "choose another with --runtime-dir",
        )
    if status.st_mode & 0o077:
        directory.chmod(0o700)


def _check_length(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > LONGEST_SOCKET_PATH:
        raise UsageError(
            f"{path} has {size} bytes, a Unix socket's path at most {LONGEST_SOCKET_PATH}; "
            "choose a shorter runtime directory"
        )


def _world(error: OSError, what: str, hint: str = "") -> TransportError:
    return TransportError(error.errno, f"{what}: {error.strerror}{hint}")

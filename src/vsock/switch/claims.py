"""Finds out who owns a socket path, and replaces stale sockets without taking one from a live process.

The file of a Unix socket outlives the process that bound it, so the file alone does not show whether a
switch is running. Two rules make it safe to replace one:

- A runtime directory belongs to the process that holds the lock on its `lock` file. The kernel releases
  the lock when the process ends, so the sockets that the next owner finds there are stale.
- For any other path we try to connect. If that works, the socket is in use and `SO_PEERCRED` names its
  owner; on ECONNREFUSED the socket is stale and is removed.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

from vsock.errors import TransportError, UsageError
from vsock.runtime import LONGEST_SOCKET_PATH, RuntimeFiles
from vsock.switch.listing import program_of

__all__ = ["Owner", "RuntimeClaim", "clear_socket", "owner_of", "peer_of", "remove_socket"]

_UCRED: Final = struct.Struct("3i")
_LONGEST_PID: Final = 20
"""Digits, more than any process id has."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_ALIVE_ERRORS: Final = frozenset({errno.EAGAIN, errno.EPROTOTYPE})


class Owner(NamedTuple):
    """A process that owns a socket or a directory."""

    pid: int
    uid: int
    command: str

    def __str__(self) -> str:
        """Return the process id, command and user, as text for people."""
        return f"process {self.pid} ({self.command}, uid {self.uid})"


class RuntimeClaim:
    """Ownership of one runtime directory, from construction to `release`.

    Creates the directory with mode 0700 if it does not exist, and removes stale sockets of a switch from it.
    An existing directory must be accessible to this user only. Its mode is never changed, because it may be
    a shared one such as `/tmp`.

    Args:
        directory: the directory for the sockets.
        option: the option or argument that chooses another directory, for error messages.

    Raises:
        TransportError: EADDRINUSE if another switch owns the directory, whose process the message names;
            EEXIST if files that are not a switch's have the names of our sockets; EACCES if other users own
            or may enter it; else the system's error.
        UsageError: the path leaves no room for the name of a socket.
    """

    def __init__(self, directory: Path, *, option: str = "runtime_dir=") -> None:
        self.files = RuntimeFiles(directory)
        self._way_out = f"with {option} or VSOCK_RUNTIME_DIR"
        # What a name leads to may change at any time: everything is done below these two.
        self._directory = self._guests = self._lock = -1
        _check_length(self.files.control)
        try:
            self._take_directory()
            self._take_lock()
            self._take_guests()
        except TransportError:
            self._close()
            raise
        except OSError as error:
            self._close()
            hint = f"; choose another one {self._way_out}"
            raise _world(error, f"cannot use the runtime directory {directory}", hint) from error
        self._remove_sockets()

    def release(self) -> None:
        """Removes our sockets and releases the directory. A second call has no effect."""
        if self._lock >= 0:
            self._remove_sockets()
            self._close()

    def _close(self) -> None:
        for fd in (self._lock, self._guests, self._directory):
            if fd >= 0:
                os.close(fd)
        self._directory = self._guests = self._lock = -1

    def _take_directory(self) -> None:
        """Creates the directory if there is none, and checks that it is accessible to this user only."""
        directory = self.files.directory
        for parent in reversed([*takewhile(lambda path: not path.exists(), directory.parents)]):
            parent.mkdir(mode=0o755, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        self._check_directory(directory.lstat())
        self._directory = os.open(directory, _DIRECTORY)
        # Somebody may have replaced it meanwhile.
        self._check_directory(os.fstat(self._directory))

    def _check_directory(self, status: os.stat_result) -> None:
        directory = self.files.directory
        if stat.S_ISLNK(status.st_mode):
            reason = "is a symbolic link; name the directory that it leads to"
            raise TransportError(errno.ELOOP, f"{directory} {reason} {self._way_out}")
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if status.st_mode & 0o022:
            raise self._not_alone("is used by other users too")
        self._check_owner(directory, status)
        if status.st_mode & 0o077:
            empty = (
                "" if any(directory.iterdir()) else f", or close this one: chmod 700 {directory}"
            )
            mode = stat.S_IMODE(status.st_mode)
            raise self._not_alone(f"is open to other users (mode {mode:04o})", empty)

    def _check_owner(self, directory: Path, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            reason = f"the runtime directory {directory} belongs to uid {status.st_uid}"
            raise TransportError(errno.EACCES, f"{reason}; choose another {self._way_out}")

    def _not_alone(self, how: str, hint: str = "", number: int = errno.EACCES) -> TransportError:
        directory = self.files.directory
        own = f"choose a directory of its own {self._way_out}, for example {directory / 'vsock'}"
        return TransportError(number, f"{directory} {how}; {own}{hint}")

    def _take_lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._lock = os.open(self.files.lock.name, flags, 0o600, dir_fd=self._directory)
        if not stat.S_ISREG(os.fstat(self._lock).st_mode):
            raise self._not_alone("has a `lock` that is no file", number=errno.EEXIST)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransportError(
                errno.EADDRINUSE,
                f"another switch runs in {self.files.directory}: {_lock_owner(self._lock)}; "
                f"stop it or choose another directory {self._way_out}",
            ) from None
        written = os.pread(self._lock, 1 + _LONGEST_PID, 0)
        if not written:
            self._check_for_strangers()
        elif not written.isdigit():
            raise self._not_alone("has a `lock` that is no switch's", number=errno.EEXIST)
        # Written before it is truncated: even if the machine stops now, the file is not empty.
        pid = str(os.getpid()).encode()
        os.pwrite(self._lock, pid, 0)
        os.ftruncate(self._lock, len(pid))

    def _check_for_strangers(self) -> None:
        """Raises TransportError if files have our names although no switch has used the directory before."""
        there = os.listdir(self._directory)  # noqa: PTH208 - a descriptor is no path
        found = [name for name in self._own_sockets() if name in there]
        if self.files.guests.is_dir() and any(self.files.guests.iterdir()):
            found.append("guests")
        if found:
            os.unlink(self.files.lock.name, dir_fd=self._directory)  # created by us just now
            names = ", ".join(f"`{name}`" for name in found)
            raise self._not_alone(f"has {names} of something else", number=errno.EEXIST)

    def _take_guests(self) -> None:
        guests = self.files.guests
        with suppress(FileExistsError):
            os.mkdir(guests.name, 0o700, dir_fd=self._directory)
        try:
            self._guests = os.open(guests.name, _DIRECTORY, dir_fd=self._directory)
        except NotADirectoryError:
            why = "has a `guests` that is no directory"
            raise self._not_alone(why, number=errno.EEXIST) from None
        self._check_owner(guests, os.fstat(self._guests))

    def _own_sockets(self) -> tuple[str, ...]:
        files = self.files
        return tuple(it.name for it in (files.stream, files.seqpacket, files.dgram, files.control))

    def _remove_sockets(self) -> None:
        for name in self._own_sockets():
            remove_socket(name, dir_fd=self._directory)
        for name in os.listdir(self._guests):  # noqa: PTH208 - a descriptor is no path
            remove_socket(name, dir_fd=self._guests)


def remove_socket(path: str | Path, *, dir_fd: int | None = None) -> None:
    """Removes the socket at `path`, but no other kind of file, and no symbolic link."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            os.unlink(path, dir_fd=dir_fd)


def clear_socket(path: Path) -> None:
    """Removes a stale socket at `path`, so that a socket can be bound there.

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
    """The process that listens at `path`; None if the socket is stale or does not exist."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
        except OSError as error:
            # The queue is full or the type differs: some process listens, but we cannot learn which.
            if error.errno in _ALIVE_ERRORS:
                return Owner(0, -1, "unknown")
            raise _world(error, f"cannot tell whether {path} is in use") from error
        return peer_of(probe)


def peer_of(connection: socket.socket) -> Owner:
    """The process that connected or listened at the other end of a Unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return Owner(pid, uid, program_of(pid) or "gone")


def _lock_owner(lock: int) -> str:
    """The owner that the lock file names; the file may be empty while the owner starts or stops."""
    with suppress(OSError, ValueError):
        pid = int(os.pread(lock, _LONGEST_PID, 0))
        return str(Owner(pid, Path(f"/proc/{pid}").stat().st_uid, program_of(pid) or "gone"))
    return "a process that does not tell its number"


def _check_length(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > LONGEST_SOCKET_PATH:
        raise UsageError(
            f"{path} has {size} bytes, a Unix socket's path at most {LONGEST_SOCKET_PATH}; "
            "choose a shorter runtime directory"
        )


def _world(error: OSError, what: str, hint: str = "") -> TransportError:
    return TransportError(error.errno, f"{what}: {error.strerror}{hint}")

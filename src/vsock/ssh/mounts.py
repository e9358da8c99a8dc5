"""Folders of guests that are mounted on this host: what the kernel's mount table has, and how a mount is ended.

`vsock mount` gives its mounts a type of their own, and GUEST:PATH as their source. So the table has all that is to be
known, and nothing is kept beside it. Nothing here looks into a mounted folder: if its guest does not answer, stat(2)
would not return.
"""

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vsock._system.text import printable

__all__ = ["SUBTYPE", "Mount", "mount_at", "mounts", "unmount", "users_of"]

SUBTYPE: Final = "vsock"
"""The kernel shows a mount of FUSE as `fuse.` and this."""

_TYPE: Final = f"fuse.{SUBTYPE}"
_UNMOUNT_SECONDS: Final = 30.0
_MOST_LINKS: Final = 40
"""As many as the kernel follows (path_resolution(7))."""
_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
_USER: Final = re.compile(rb"\buser_id=([0-9]+)")
_FILE_SYSTEM: Final = b"sshfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of the mount table.

    Attributes:
        guest: the guest, as it was named; empty if `is_ours` is false.
        path: the folder of the guest; empty for the user's home.
        folder: where it is mounted.
        read_only: nothing can be written.
        type: of the file system.
        device: its number among the kernel's file systems.
        uid: the user who has mounted it; -1 if the table does not say.
    """

    guest: str
    path: str
    folder: str
    read_only: bool
    type: str
    device: int
    uid: int

    @property
    def is_ours(self) -> bool:
        """Whether `vsock mount` has made it."""
        return self.type == _TYPE

    def pid(self) -> int | None:
        """The process of the file system, which is its user's; None if it is gone, or cannot be seen."""
        folder = os.fsencode(self.folder)
        found = []
        for process in _processes():
            with suppress(OSError):
                if process.stat().st_uid != self.uid:
                    continue
                words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if words[-1] == folder and words[0].rpartition(b"/")[2] == _FILE_SYSTEM:
                    # One that was taken away lazily may go on: the folder is that of the last one.
                    found.append((_started(process), int(process.name)))
        return max(found)[1] if found else None


def mounts() -> list[Mount]:
    """The mounts of `vsock mount`, of all users."""
    return [one for one in _table() if one.is_ours]


def mount_at(folder: str) -> Mount | None:
    """The topmost mount of whatever type at a folder, or where a link with that name leads."""
    for _ in range(_MOST_LINKS):
        if ".." not in Path(folder).parts:
            folder = os.path.normpath(folder)  # a dot at the end would be a look into the folder
        parent, name = os.path.split(folder)
        folder = os.path.normpath(os.path.join(os.path.realpath(parent), name))  # noqa: PTH118 - text
        if found := _topmost(folder):
            return found
        try:
            folder = os.path.join(os.path.dirname(folder), os.readlink(folder))  # noqa: PTH115, PTH118, PTH120 - text
        except OSError:
            return None  # it is no link
    return None


def _topmost(folder: str) -> Mount | None:
    found = [one for one in _table() if one.folder == folder]
    return found[-1] if found else None


def _table() -> Iterator[Mount]:
    # proc(5): ID parent major:minor root MOUNT-POINT OPTIONS … - TYPE SOURCE options-of-the-file-system
    # The kernel escapes blanks and line feeds alone, and any user may mount at a name with other characters.
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:
        before, _, after = line.partition(b" - ")
        number, _, folder, options = before.split(b" ")[2:6]
        kind, source, inner = after.split(b" ")[:3]
        guest, _, path = _text(source).partition(":") if kind == _TYPE.encode() else ("", "", "")
        uid = _USER.search(inner)
        yield Mount(
            guest=guest,
            path=path,
            folder=_text(folder),
            read_only=b"ro" in options.split(b","),
            type=_text(kind),
            device=int(number.partition(b":")[2]),
            uid=int(uid[1]) if uid else -1,
        )


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))


def unmount(mount: Mount, *, lazy: bool = False, force: bool = False) -> None:
    """Take a mount away.

    Args:
        mount: one of ours.
        lazy: from the folder at once, and wholly when no program uses it any more.
        force: at once; what programs have open there fails.

    Raises:
        OSError: with EBUSY, programs use it; else `strerror` has fusermount3's words.
    """
    with _ended(mount) if force else nullcontext():
        _take_away(mount, is_lazy=lazy or force)


@contextmanager
def _ended(mount: Mount) -> Iterator[None]:
    """End a mount's connection with its file system, and with it all calls that wait for an answer of the guest."""
    try:
        (_CONNECTIONS / str(mount.device) / "abort").write_bytes(b"1")
    except OSError:  # fusectl is not mounted
        pid = mount.pid()
        if pid is None:
            yield
            return
        process = os.pidfd_open(pid)
        try:
            is_the_one = mount.pid() == pid
            yield
            if is_the_one:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
    else:
        yield


def _take_away(mount: Mount, *, is_lazy: bool) -> None:
    order = ["fusermount3", "-u", *(["-z"] if is_lazy else []), "--", mount.folder]
    try:
        done = subprocess.run(
            order,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            timeout=_UNMOUNT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise OSError(errno.ENOENT, "fusermount3 is not installed: install fuse3") from None
    except subprocess.TimeoutExpired:
        raise OSError(
            errno.ETIMEDOUT, f"fusermount3 did not return within {_UNMOUNT_SECONDS:g} s"
        ) from None
    there = _topmost(mount.folder)
    # A file system that has ended by itself takes its mount away, too.
    if done.returncode and there and there.device == mount.device:
        said = done.stderr.decode(errors="replace").strip()
        code = errno.EBUSY if said.endswith("Device or resource busy") else errno.EIO
        raise OSError(code, printable(said) or f"fusermount3 ended with {done.returncode}")


def users_of(folder: str) -> Iterator[tuple[int, str]]:
    """Processes that use a folder, as far as this user may see them: their pid and their name."""
    for process in _processes():
        with suppress(OSError):
            if any(_is_in(path, folder) for path in _paths_of(process)):
                yield int(process.name), (process / "comm").read_text(errors="replace").strip()


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def _started(process: Path) -> int:
    """When it was started; starttime of proc(5), the 22nd field, and the 20th behind the name."""
    return int((process / "stat").read_bytes().rpartition(b")")[2].split()[19])


def _paths_of(process: Path) -> Iterator[str]:
    links = [process / name for name in ("cwd", "root", "exe")]
    with suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with suppress(OSError):
            yield str(link.readlink())


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")

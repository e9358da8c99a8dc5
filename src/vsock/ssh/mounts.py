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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vsock._system.text import printable

__all__ = ["SUBTYPE", "Mount", "mount_at", "mounts", "unmount", "users_of"]

SUBTYPE: Final = "vsock"
"""The kernel shows a mount of FUSE as `fuse.` and this."""

_TYPE: Final = f"fuse.{SUBTYPE}"
_UNMOUNT_SECONDS: Final = 30.0
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")
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
    """

    guest: str
    path: str
    folder: str
    read_only: bool
    type: str

    @property
    def is_ours(self) -> bool:
        """Whether `vsock mount` has made it."""
        return self.type == _TYPE

    def pid(self) -> int | None:
        """The process of the file system; None if it is gone, or another user's that cannot be seen."""
        folder = os.fsencode(self.folder)
        found = []
        for process in _processes():
            with suppress(OSError):
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
    path = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would look at the last part, too
    return _topmost(str(path.parent.resolve() / path.name)) or _topmost(os.path.realpath(folder))


def _topmost(folder: str) -> Mount | None:
    found = [one for one in _table() if one.folder == folder]
    return found[-1] if found else None


def _table() -> Iterator[Mount]:
    # proc(5): ID parent major:minor root MOUNT-POINT OPTIONS … - TYPE SOURCE options-of-the-file-system
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        folder, options = before.split(b" ")[4:6]
        kind, source = after.split(b" ")[:2]
        guest, _, path = _text(source).partition(":") if kind == _TYPE.encode() else ("", "", "")
        yield Mount(
            guest=guest,
            path=path,
            folder=_text(folder),
            read_only=b"ro" in options.split(b","),
            type=_text(kind),
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
    pid = mount.pid() if force else None
    order = ["fusermount3", "-u", *(["-z"] if lazy or force else []), "--", mount.folder]
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
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        code = errno.EBUSY if said.endswith("Device or resource busy") else errno.EIO
        raise OSError(code, printable(said) or f"fusermount3 ended with {done.returncode}")
    if pid:
        # The kernel then ends all calls that wait for an answer of the guest.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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

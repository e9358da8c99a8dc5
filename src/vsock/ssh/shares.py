"""What this user shares with guests at the moment: a record for each `vsock share` that runs, with its process.

A record is a file that its process keeps locked, so one that nobody has locked is of a process that was killed.
"""

import errno
import fcntl
import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vsock.ssh.identity import state_dir

__all__ = ["Share", "end", "recorded", "shares"]

_END_SECONDS: Final = 30.0
"""How long a share may take to end; unmounting in a guest that does not answer takes the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A folder of this host in a guest.

    Attributes:
        guest: the guest, as it was named.
        path: where it is in the guest, as the guest says.
        asked: where it was asked for.
        folder: the folder of this host.
        read_only: the guest can write nothing.
        user: the user of the guest who has mounted it.
        pid: the process that serves it.
    """

    guest: str
    path: str
    asked: str
    folder: str
    read_only: bool
    user: str
    pid: int


def _directory() -> Path:
    return state_dir() / "shares"


@contextmanager
def recorded(share: Share) -> Iterator[None]:
    """List a share of this process until the end of the block.

    Raises:
        OSError: the record cannot be written.
    """
    _directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    # A home directory may be that of several machines.
    path = _directory() / f"{os.uname().nodename}-{share.pid}"
    new = path.with_name(f"{path.name}.new")
    with new.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(asdict(share)))
        file.flush()
        new.replace(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def shares() -> list[Share]:
    """The shares of this user on this machine; records of processes that are gone are removed."""
    found = []
    for path in sorted(_directory().glob("*")):
        machine, _, pid = path.name.rpartition("-")
        if machine != os.uname().nodename or not pid.isdigit():
            continue
        with suppress(FileNotFoundError), path.open() as file:
            if not _is_locked(file.fileno()):
                path.unlink()
                continue
            with suppress(ValueError, TypeError):  # of another version
                found.append(Share(**json.load(file)))
    return found


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def end(share: Share) -> None:
    """End a share, and wait until its process has ended.

    Raises:
        OSError: it does not end (ETIMEDOUT).
    """
    try:
        process = os.pidfd_open(share.pid)
    except ProcessLookupError:
        return
    try:
        if share not in shares():  # the number may be another process's by now
            return
        signal.pidfd_send_signal(process, signal.SIGTERM)
        poller = select.poll()
        poller.register(process, select.POLLIN)
        if not poller.poll(_END_SECONDS * 1000):
            text = f"process {share.pid}, which serves it, did not end within {_END_SECONDS:g} s"
            raise OSError(errno.ETIMEDOUT, text)
    except ProcessLookupError:
        return
    finally:
        os.close(process)

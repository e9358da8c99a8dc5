"""The log of a proxy: a line of JSON when a host is connected to, before the client can send it anything; one when a request is over.

What a client chooses in it is bounded: hosts are names of 253 characters at most, paths and reasons are cut, and JSON escapes
the rest. How many lines a client causes, `vsock.proxy.clients` limits.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from vsock._system.descriptors import write_all

__all__ = ["Entry", "Log"]

_LONGEST: Final = 260


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request.

    Attributes:
        time: when it began, in UTC.
        number: of the connection, from 1 on since the proxy began; both lines of a request have the same.
        cid: the guest's; None for a client that came by TCP or a Unix socket.
        guest: its name, where the switch tells.
        listener: by which it came.
        protocol: `http`, `connect`, `socks5`; None if it said none of these.
        method, path: of HTTP; without the query, which may have secrets.
        target: ``HOST:PORT``; None if it is not known.
        verdict: `opened`: the host is connected to; when it is over `allowed`; `refused`; or `failed`: let through, and not or
            not wholly carried out.
        reason: why it was refused, or failed.
        bytes_out, bytes_in: to the target and from it.
        seconds: how long it took.
        turned_away: connections of this client that were closed because it had too many, since its last request was over.
    """

    time: str
    number: int
    cid: int | None
    guest: str | None
    listener: str
    protocol: str | None
    method: str | None
    target: str | None
    path: str | None
    verdict: str
    reason: str | None
    bytes_out: int
    bytes_in: int
    seconds: float
    turned_away: int


class Log:
    """Where the lines go.

    Args:
        path: a file, which is appended to and made with mode 0600; None for standard output.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor = 1 if path is None else _open(path)

    @property
    def has_file(self) -> bool:
        """Whether it is in a file of its own."""
        return self._path is not None

    def write(self, entry: Entry) -> None:
        """Write one line.

        Raises:
            OSError: it cannot be written whole.
        """
        fields = {name: _cut(value) for name, value in asdict(entry).items()}
        write_all(self._descriptor, f"{json.dumps(fields)}\n".encode())

    def reopen(self) -> None:
        """Begin the file anew, after logrotate(8) has moved it away.

        Raises:
            OSError: it cannot be opened; the log goes on in the old file.
        """
        if self._path:
            opened = _open(self._path)
            self.close()
            self._descriptor = opened

    def close(self) -> None:
        """Close the file."""
        if self._path:
            os.close(self._descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _cut(value: object) -> object:
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]}..."
    return value

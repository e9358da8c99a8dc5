"""What a control master and its clients say to each other, and where masters listen.

Each has a SOCK_SEQPACKET socket of unix(7) in the user's state directory, and a message is a JSON object in one packet:

| from the client | answer |
| --- | --- |
| (connects) | `GREETING`; a master that has none to give does not serve, and the client logs in itself |
| `{"ask": "status"}` | a `Status` |
| `{"ask": "close"}` | `{}`; the master ends its session and itself |
| `{"ask": "run", "line": …, "terminal": …}` and the pipes | `{"started": true}`, `{"declined": reason}`, or `{"error": text}` |
| then `{"signal": "INT"}` or `{"size": [columns, rows]}` | none |
| | at the end `{"status": number}` or `{"signal": name}`; both null if the session ended first |

`declined` says that nothing was run: the client logs in itself. `line` is for the shell of the guest's user, null for the shell itself. `terminal` is null, or `{"type", "size"}`. The pipes
are standard input (to read from), output and error (to write to); no error with a terminal.
"""

import errno
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vsock.errors import SessionError
from vsock.ssh.identity import state_dir

__all__ = [
    "GREETING",
    "LONGEST",
    "Key",
    "Status",
    "at",
    "decode",
    "encode",
    "open_directory",
    "sessions_dir",
]

GREETING: Final = {"vsock": 1}
"""The first packet of a master, with the version of these messages."""

LONGEST: Final = 192 * 1024
"""Bytes of a message: less than the kernel's default send buffer. A longer command has a session of its own."""


@dataclass(frozen=True, slots=True)
class Key:
    """What makes a session the one that is looked for.

    Attributes:
        guest: as it was named.
        user: of the guest.
        port: the vsock port of its sshd.
        forward_agent: whether programs there may use this user's ssh-agent.
        transport: where connections come from: the directory of a switch, or `kernel`.
    """

    guest: str
    user: str
    port: int
    forward_agent: bool
    transport: str

    @property
    def file_name(self) -> str:
        """The name of the socket in `sessions_dir`."""
        # A home directory may be that of several machines.
        machine = os.uname().nodename
        fields = (machine, self.guest, self.user, self.port, self.forward_agent, self.transport)
        return hashlib.sha256(repr(fields).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a master is.

    Attributes:
        guest: as in `Key`; so are `user`, `port`, `forward_agent`.
        pid: the master's process.
        running: commands that run in the session now.
        age: seconds since it was opened.
        closes_in: seconds until it closes if nothing runs in it; None while something does.
    """

    guest: str
    user: str
    port: int
    forward_agent: bool
    pid: int
    running: int
    age: float
    closes_in: float | None


def sessions_dir() -> Path:
    """The directory of the masters' sockets; mode 0700, as the private key beside it."""
    return state_dir() / "sessions"


def open_directory() -> int:
    """Open `sessions_dir`, which nobody else may enter: who reaches a socket there uses the session.

    Raises:
        SessionError: it is somebody else's, or others may enter it (EPERM).
        OSError: there is none.
    """
    directory = os.open(sessions_dir(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(directory)
        raise SessionError(
            errno.EPERM,
            f"{sessions_dir()} is not a directory of yours alone: its mode must be 0700",
        )
    return directory


def at(directory: int, name: str) -> Path:
    """The path of a socket below an open directory: sun_path has room for 107 bytes, however long the directory's is."""
    return Path(f"/proc/self/fd/{directory}/{name}")


def encode(message: dict[str, Any]) -> bytes:
    """One packet.

    Raises:
        ValueError: it is longer than LONGEST.
    """
    packet = json.dumps(message).encode()
    if len(packet) > LONGEST:
        raise ValueError(f"a message of {len(packet)} bytes")
    return packet


def decode(packet: bytes) -> dict[str, Any]:
    """Read a packet.

    Raises:
        ValueError: it is none of ours.
    """
    message = json.loads(packet)
    if not isinstance(message, dict):
        raise ValueError("no JSON object")
    return message

"""The host keys of guests, pinned under the guests' names at first use or told in advance.

They are lines as in known_hosts of sshd(8): `alpha@/run/user/1000/vsock ssh-ed25519 AAAA…`. The directory of the
switch is part of the name, because two switches may both have a guest `alpha`. A key that was pinned is never
replaced by itself: `HostKeyChanged` says how a user does it.
"""

import base64
import binascii
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from vsock.errors import HostKeyChanged, UsageError
from vsock.runtime import default_runtime_dir
from vsock.ssh.files import write_whole
from vsock.ssh.identity import state_dir

__all__ = ["HostKey", "HostKeys", "pin_name"]

_ALGORITHM: Final = re.compile(r"[a-z0-9@.-]{1,64}", re.IGNORECASE)
_LONGEST_KEY: Final = 16 * 1024
"""Characters; RSA of 16384 bits has 2,800."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key.

    Attributes:
        algorithm: its kind, such as `ssh-ed25519`.
        data: the key in base64.

    Raises:
        UsageError: this is no public key.
    """

    algorithm: str
    data: str

    def __post_init__(self) -> None:
        """Check both: they come from a guest, by way of OpenSSH, or from a user."""
        if not _ALGORITHM.fullmatch(self.algorithm) or not 0 < len(self.data) <= _LONGEST_KEY:
            raise UsageError(
                "this is no public key: a type such as ssh-ed25519, and a key in base64"
            )
        try:
            blob = base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError):
            raise UsageError(f"this {self.algorithm} key is not in base64") from None
        # The blob repeats the algorithm, and is a row of strings (RFC 4253, section 6.6).
        parts = _strings(blob)
        if not parts or parts[0] != self.algorithm.encode():
            raise UsageError(f"this key is not of the kind {self.algorithm}")
        if len(parts) < 2 or "-cert-" in self.algorithm:
            raise UsageError(f"this {self.algorithm} key is not whole, or is a certificate")

    @classmethod
    def parse(cls, text: str) -> "HostKey":
        """Read `ALGORITHM BASE64 [COMMENT]`, as a file in /etc/ssh/*.pub has it. Raises UsageError."""
        algorithm, data, *_ = [*text.split(), "", ""]
        return cls(algorithm, data)

    def __str__(self) -> str:
        """Return `ALGORITHM BASE64`."""
        return f"{self.algorithm} {self.data}"


def _strings(blob: bytes) -> list[bytes]:
    """The strings of an SSH message, each behind its length; none if they do not fill it (RFC 4251, section 5)."""
    parts = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length:
            return []
        parts.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return parts


def pin_name(guest: str, runtime_dir: str | os.PathLike[str]) -> str:
    """The name under which the keys of `guest` are pinned, whose switch has this runtime directory."""
    return f"{quote(guest, safe='')}@{quote(os.path.realpath(runtime_dir))}"


class HostKeys:
    """The pinned keys of one file.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of_user(cls) -> "HostKeys":
        """The keys that this user has pinned."""
        return cls(state_dir() / "known_hosts")

    def of(self, name: str) -> list[HostKey]:
        """The keys pinned under a `pin_name`."""
        return [key for pinned, key in self._read() if pinned == name]

    def check(self, name: str, key: HostKey) -> None:
        """Pin `key` if nothing is pinned under `name` yet.

        Raises:
            HostKeyChanged: another key is pinned.
            OSError: the file cannot be read or written.
        """
        if key in self.of(name):
            return
        with self._changing() as entries:
            pinned = [known for other, known in entries if other == name]
            if not pinned:
                entries.append((name, key))
            elif key not in pinned:
                raise _changed(name, self._path)

    def pin(self, name: str, key: HostKey) -> None:
        """Pin `key` in place of all that were pinned under `name`."""
        with self._changing() as entries:
            entries[:] = [entry for entry in entries if entry[0] != name]
            entries.append((name, key))

    def forget(self, name: str) -> bool:
        """Forget the keys pinned under `name`; returns whether there were any."""
        with self._changing() as entries:
            kept = [entry for entry in entries if entry[0] != name]
            found = len(kept) < len(entries)
            entries[:] = kept
        return found

    def _read(self) -> list[tuple[str, HostKey]]:
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for number, line in enumerate(lines, 1):
            name, _, rest = line.strip().partition(" ")
            if name and not name.startswith("#"):
                try:
                    entries.append((name, HostKey.parse(rest)))
                except UsageError as error:
                    raise UsageError(f"{self._path}, line {number}: {error}") from None
        return entries

    @contextmanager
    def _changing(self) -> Iterator[list[tuple[str, HostKey]]]:
        """The entries, which are written as changed at the end of the block; others that change them wait."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entries = self._read()
            before = list(entries)
            yield entries
            if entries != before:
                write_whole(self._path, "".join(f"{name} {key}\n" for name, key in entries))
        finally:
            os.close(lock)


def _changed(name: str, path: Path) -> HostKeyChanged:
    guest, _, scope = map(unquote, name.partition("@"))
    if scope == os.path.realpath(default_runtime_dir()):
        remedy = f"run `vsock guest host-key {guest} --forget`"
    elif Path(scope).is_dir():
        remedy = f"run `vsock guest host-key {guest} --forget --runtime-dir {scope}`"
    else:
        remedy = f"remove its line from {path}"
    return HostKeyChanged(
        errno.EACCES,
        f"{guest} has another host key than the one pinned at its first use: if it was installed anew, {remedy}; "
        "if not, another machine answers under its name",
    )

"""The key pair by which guests know this user: made at first use, in the user's state directory.

It has no passphrase, as host keys have none: who can read it can use the switch of this user too.
"""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vsock.errors import UsageError, missing_extra

__all__ = ["Identity", "state_dir"]

_ALGORITHM: Final = "ssh-ed25519"


def state_dir() -> Path:
    """The directory of what is kept for this user: `$XDG_STATE_HOME/vsock`, else `~/.local/state/vsock`."""
    base = os.environ.get("XDG_STATE_HOME")
    # The XDG specification: a relative path is to be ignored.
    return (Path(base) if base and base.startswith("/") else Path.home() / ".local/state") / "vsock"


@dataclass(frozen=True, slots=True)
class Identity:
    """The key pair in a directory.

    Attributes:
        directory: where its two files are; made with mode 0700 when the key is.
    """

    directory: Path

    @classmethod
    def of_user(cls) -> "Identity":
        """The key pair of this user."""
        return cls(state_dir())

    @property
    def private_file(self) -> Path:
        """The private key, in OpenSSH's form (mode 0600)."""
        return self.directory / "id_ed25519"

    @property
    def public_file(self) -> Path:
        """The public key, one line, as `authorized_keys` has it."""
        return self.directory / "id_ed25519.pub"

    def make(self) -> None:
        """Make the key pair if there is none. Two processes that do so at once get one pair.

        Raises:
            UsageError: others can read the private key.
            MissingExtra: there is none, and asyncssh, which makes one, is not installed.
            OSError: the files cannot be written.
        """
        if not self.private_file.exists():
            self._generate()
        mode = self.private_file.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise UsageError(
                f"{self.private_file} can be read by others (mode {mode & 0o777:04o}): chmod 600 it, "
                "or remove it for a new key"
            )
        if not self.public_file.exists():
            self._write_public()

    def public_key(self) -> str:
        """The public key, one line without a line end. Makes the pair if there is none; raises as `make`."""
        self.make()
        return self.public_file.read_text().strip()

    def _generate(self) -> None:
        try:
            from asyncssh import generate_private_key
        except ModuleNotFoundError as error:
            raise missing_extra(error, "a key for guests", "ssh") from None
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = generate_private_key(_ALGORITHM, comment="vsock")
        # Of a private key that was removed.
        self.public_file.unlink(missing_ok=True)
        _write_new(self.private_file, key.export_private_key())

    def _write_public(self) -> None:
        try:
            from asyncssh import read_private_key
        except ModuleNotFoundError as error:
            raise missing_extra(error, "a key for guests", "ssh") from None
        key = read_private_key(self.private_file)
        _write_new(self.public_file, key.export_public_key())


def _write_new(path: Path, content: bytes) -> None:
    """Write a file (mode 0600) that appears as a whole; if another process was first, its file stays."""
    import tempfile  # late: the name of the folder alone is what commands in kept sessions need

    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        Path(partial).unlink()

"""Where a switch keeps its files, and their names.

Every program that wants to talk to a switch on this machine looks in the same directory:
`$VSOCK_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/vsock`, else `/run/vsock`. It belongs to one user
(mode 0700): who may enter it may use the switch. `switch.claims` makes it, and takes no other.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LONGEST_SOCKET_PATH: Final = 107
"""Bytes in the path of a Unix socket: sun_path of unix(7), less the final NUL."""

__all__ = ["LONGEST_SOCKET_PATH", "RuntimeFiles", "default_runtime_dir"]


def default_runtime_dir() -> Path:
    """The runtime directory for this user, whether or not it exists."""
    if chosen := os.environ.get("VSOCK_RUNTIME_DIR"):
        return Path(chosen)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "vsock"
    return Path("/run/vsock")


@dataclass(frozen=True, slots=True)
class RuntimeFiles:
    """The names in one runtime directory."""

    directory: Path

    @property
    def stream(self) -> Path:
        """Socket of the client protocol for SOCK_STREAM."""
        return self.directory / "stream"

    @property
    def seqpacket(self) -> Path:
        """Socket of the client protocol for SOCK_SEQPACKET."""
        return self.directory / "seqpacket"

    @property
    def dgram(self) -> Path:
        """Socket of the client protocol for SOCK_DGRAM."""
        return self.directory / "dgram"

    @property
    def control(self) -> Path:
        """Socket of the control API (HTTP)."""
        return self.directory / "control.sock"

    @property
    def lock(self) -> Path:
        """Locked by the switch that owns the directory, as long as it lives."""
        return self.directory / "lock"

    @property
    def guests(self) -> Path:
        """Directory of the guests' sockets."""
        return self.directory / "guests"

    def guest_socket(self, name: str) -> Path:
        """The vhost-user socket that the VMM of guest `name` connects to."""
        return self.guests / f"{name}.sock"

    def hybrid_socket(self, name: str) -> Path:
        """The hybrid socket (`CONNECT <port>`) of guest `name`."""
        return self.guests / f"{name}.vsock"

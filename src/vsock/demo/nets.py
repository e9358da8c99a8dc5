"""Sockets as a program of the demo sees them, in a Linux guest or over the switch.

A program of the demo is a function that gets one of these as its first argument. Both travel as source
text (`vsock.testing.remote`), so each stands on its own and imports inside.
"""

import socket
from typing import Protocol

STREAM = 1
SEQPACKET = 5


class Net(Protocol):
    """Where a program's connections come from and go to."""

    def connect(self, cid: int, port: int, kind: int = 1) -> socket.socket:
        """A connection to CID and port; its operations time out."""

    def listen(self, port: int, kind: int = 1) -> socket.socket:
        """A listener on every CID that is ours."""


class KernelNet:
    """In a Linux guest: its kernel's AF_VSOCK."""

    def connect(self, cid: int, port: int, kind: int = 1) -> socket.socket:
        """A connection to CID and port; its operations time out."""
        import socket

        made = socket.socket(socket.AF_VSOCK, kind)
        made.settimeout(20)
        made.connect((cid, port))
        return made

    def listen(self, port: int, kind: int = 1) -> socket.socket:
        """A listener on every CID that is ours."""
        import socket

        made = socket.socket(socket.AF_VSOCK, kind)
        made.settimeout(20)
        made.bind((socket.VMADDR_CID_ANY, port))
        # More than any check opens at once: a kernel refuses what a slow guest has no room for.
        made.listen(1024)
        return made


class SwitchNet:
    """In a host program or a userspace guest: the switch that VSOCK_RUNTIME_DIR names."""

    def connect(self, cid: int, port: int, kind: int = 1) -> socket.socket:
        """A connection to CID and port; its operations time out."""
        from vsock import sockets

        return sockets.create_connection((cid, port), 20, type=kind)

    def listen(self, port: int, kind: int = 1) -> socket.socket:
        """A listener on every CID that is ours."""
        from vsock import sockets

        made = sockets.create_server(port, type=kind, backlog=1024)
        made.settimeout(20)
        return made

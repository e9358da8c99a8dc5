"""Sockets for programs of the demo, in a Linux guest or over the switch.

A program of the demo is a function that gets one of these as its first argument. Both are sent as source
text (`vsock.testing.remote`), so each is self-contained, with its imports inside.
"""

import socket
from typing import Protocol

STREAM = 1
SEQPACKET = 5


class Net(Protocol):
    """Connections of a program."""

    def connect(self, cid: int, port: int, kind: int = 1) -> socket.socket:
        """A connection to CID and port; its operations time out."""

    def listen(self, port: int, kind: int = 1) -> socket.socket:
        """A listener on every CID of this machine."""


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
        """A listener on every CID of this machine."""
        import socket

        made = socket.socket(socket.AF_VSOCK, kind)
        made.settimeout(20)
        made.bind((socket.VMADDR_CID_ANY, port))
        # More than any check opens at once: a kernel refuses connections beyond the backlog.
        made.listen(1024)
        return made


class SwitchNet:
    """In a host program or a userspace guest: the switch that VSOCK_RUNTIME_DIR names."""

    def connect(self, cid: int, port: int, kind: int = 1) -> socket.socket:
        """A connection to CID and port; its operations time out."""
        from vsock import sockets

        return sockets.create_connection((cid, port), 20, type=kind)

    def listen(self, port: int, kind: int = 1) -> socket.socket:
        """A listener on every CID of this machine."""
        from vsock import sockets

        made = sockets.create_server(port, type=kind, backlog=1024)
        made.settimeout(20)
        return made

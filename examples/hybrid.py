"""Hybrid sockets: VSOCK as Firecracker and Cloud Hypervisor offer it, through Unix sockets.

    vsock guest add delta 6 --hybrid
    python hybrid.py call $VSOCK_RUNTIME_DIR/guests/delta.vsock 5000 hello
    python hybrid.py listen $VSOCK_RUNTIME_DIR/guests/delta.vsock 6000

To call a guest, connect to its socket and send `CONNECT 5000`; it answers `OK` and a number, and
what follows is the connection. To be called at CID 2 port 6000, listen at the path with `_6000`
at its end. Any language can do that; in Python an address does.
"""

import argparse
import socket
from pathlib import Path

import vsock


def call(path: Path, port: int, text: str) -> None:
    """Send a text to the guest's port and print the answer."""
    address = vsock.HybridAddress(str(path.absolute()), port)  # or "hvsock:///path:5000"
    with vsock.create_connection(address, timeout=5) as connection:
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("r", encoding="utf-8") as answer:
            print(answer.read())


def listen(path: Path, port: int) -> None:
    """Wait for one connection of the guest to the host's port, and print what it says."""
    address = vsock.HybridAddress(str(path.absolute()), port)
    with vsock.create_server(address) as listener:
        print(f"listening on {listener.getsockname()}", flush=True)
        connection, _ = listener.accept()
        with connection, connection.makefile("r", encoding="utf-8") as said:
            print(said.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Talk to a guest through a hybrid socket.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("call", "listen"):
        command = commands.add_parser(name)
        command.add_argument("path", type=Path)
        command.add_argument("port", type=int)
    commands.choices["call"].add_argument("text")
    options = vars(parser.parse_args())
    (call if options.pop("command") == "call" else listen)(**options)

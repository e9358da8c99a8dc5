"""Hybrid sockets: VSOCK over Unix sockets, as in Firecracker and Cloud Hypervisor.

    vsock guest add delta 6 --hybrid
    python hybrid.py call $VSOCK_RUNTIME_DIR/guests/delta.vsock 5000 hello
    python hybrid.py listen $VSOCK_RUNTIME_DIR/guests/delta.vsock 6000

To connect to a guest, connect to its Unix socket and send `CONNECT 5000`. The answer is `OK` and a
number; after that line the socket is the connection. To accept the guest's connections to CID 2,
port 6000, listen at the path with `_6000` appended. Any language can do that; here an address does.
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
    """Accept one connection of the guest to the host's port, and print its data."""
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

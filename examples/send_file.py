"""A file over a stream: half-close ends the file, and the receiver's checksum comes back.

    python send_file.py receive 5000 copy.iso
    python send_file.py send alpha:5000 original.iso

The sender need not send the length first: it shuts its direction down, the receiver reads the end
of the data, and the other direction is still open for the answer.
"""

import argparse
import hashlib
import socket
import sys
from pathlib import Path

import vsock


def receive(port: int, path: Path) -> None:
    """Write the data of one sender to a file, and answer with the checksum of the file."""
    digest = hashlib.sha256()
    with vsock.create_server(port) as listener:
        print(f"listening on {listener.getsockname()}", flush=True)
        connection, peer = listener.accept()
    with connection, path.open("wb") as file:
        while data := connection.recv(1 << 20):
            digest.update(data)
            file.write(data)
        file.flush()
        connection.sendall(digest.digest())
    print(f"{path.stat().st_size} bytes from {peer}")


def send(address: str, path: Path) -> bool:
    """Send a file; return whether the receiver has the same bytes."""
    with vsock.create_connection(address) as connection, path.open("rb") as file:
        connection.sendfile(file)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            theirs = answer.read()
        file.seek(0)
        return theirs == hashlib.file_digest(file, "sha256").digest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send and receive a file.")
    parser.add_argument("command", choices=["receive", "send"])
    parser.add_argument("where", help="a port to receive on, or the receiver's address")
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "receive":
        receive(int(arguments.where), arguments.file)
    elif not send(arguments.where, arguments.file):
        sys.exit("the receiver's checksum differs")

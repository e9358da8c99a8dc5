"""Inside a Linux guest: plain Python, nothing to install. This file does not import vsock.

    python3 in_guest.py serve 5000          # then on the host: echo hello | vsock cat alpha:5000
    python3 in_guest.py ask 7000 hello      # with, on the host: vsock cat -l 7000

The AF_VSOCK of the guest's kernel leads to the switch. The host is always CID 2. On any other
machine AF_VSOCK would be that machine's own, so this program requires the file /run/boot-id, which
guests of `boot_guest.py` have (in a guest of your own: `touch /run/boot-id`).
"""

import argparse
import socket
from pathlib import Path

HOST = 2


def serve(port: int) -> None:
    """Send back what clients send, one after the other."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen()
        print(f"listening on port {port}", flush=True)
        while True:
            connection, (cid, _) = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)
            print(f"served CID {cid}", flush=True)


def ask(port: int, text: str) -> None:
    """Send a text to a port of the host and print the answer."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        connection.connect((HOST, port))
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("r", encoding="utf-8") as answer:
            print(answer.read())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Talk to the host from a guest.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("port", type=int)
    asking = commands.add_parser("ask")
    asking.add_argument("port", type=int)
    asking.add_argument("text")
    arguments = parser.parse_args()
    if not Path("/run/boot-id").exists():
        parser.error("this machine is no guest of a switch: there is no /run/boot-id")
    if arguments.command == "serve":
        serve(arguments.port)
    else:
        ask(arguments.port, arguments.text)

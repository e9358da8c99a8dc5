"""SEQPACKET: messages that arrive complete and in order.

    python messages.py serve 5000
    python messages.py send alpha:5000 one two "three and four"

A stream has no message boundaries; here one `recv` returns the message of one `send`. A message
must fit the receiver's buffer (262144 bytes unless changed). An empty message cannot be sent,
because the receiver would read it as the end of the connection.
"""

import argparse

import vsock
from vsock import SOCK_SEQPACKET

LARGEST = 65536


def serve(port: int) -> None:
    """Answer each message with its length and text, one client after the other."""
    with vsock.create_server(port, type=SOCK_SEQPACKET) as listener:
        print(f"listening on {listener.getsockname()}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                while message := connection.recv(LARGEST):
                    connection.send(b"%d bytes: %s" % (len(message), message))


def send(address: str, texts: list[str]) -> None:
    """Send each text as a message of its own and print the answers."""
    with vsock.create_connection(address, type=SOCK_SEQPACKET) as connection:
        for text in texts:
            connection.send(text.encode())
        for _ in texts:
            print(connection.recv(LARGEST).decode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Messages over SEQPACKET.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("port", type=int)
    sending = commands.add_parser("send")
    sending.add_argument("address")
    sending.add_argument("text", nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.port)
    else:
        send(arguments.address, arguments.text)

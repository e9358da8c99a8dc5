"""Datagrams: single messages without a connection, from one socket to many others.

    python datagrams.py receive 5000
    python datagrams.py send alpha:5000 one two three

Programs on the host and userspace guests (`vsock.Guest`) have datagrams; Linux has none over
virtio. A datagram is lost without an error if the receiver's buffer is full, or if no socket in the
guest is bound to the port. So this sender waits for an answer, with a timeout.
"""

import argparse
import sys

import vsock


def receive(port: int) -> None:
    """Print each datagram and answer it."""
    with vsock.socket(vsock.SOCK_DGRAM) as sock:
        sock.bind((vsock.CID_ANY, port))
        print(f"receiving on {sock.getsockname()}", flush=True)
        while True:
            data, sender = sock.recvfrom(65536)
            print(f"{sender.cid} says {data.decode()}", flush=True)
            sock.sendto(b"got " + data, sender)


def send(address: str, texts: list[str]) -> None:
    """Send each text, and wait for the answer to it."""
    with vsock.socket(vsock.SOCK_DGRAM) as sock:
        sock.connect(address)  # sets the destination of `send`; no packet is sent
        sock.settimeout(5)
        for text in texts:
            sock.send(text.encode())
            print(sock.recv(65536).decode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send and receive datagrams.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("receive").add_argument("port", type=int)
    sending = commands.add_parser("send")
    sending.add_argument("address")
    sending.add_argument("text", nargs="+")
    arguments = parser.parse_args()
    try:
        if arguments.command == "receive":
            receive(arguments.port)
        else:
            send(arguments.address, arguments.text)
    except OSError as error:
        sys.exit(f"datagrams.py: {error}")

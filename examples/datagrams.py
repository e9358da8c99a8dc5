"""Datagrams: single messages without a connection, to and from many.

    python datagrams.py receive 5000
    python datagrams.py send alpha:5000 one two three

They go between programs on the host and guests that are processes (`vsock.Guest`); a Linux kernel
in a virtual machine has no datagrams over virtio. A datagram that the receiver has no room for, or
to a port that nobody has in the guest, is lost, and nobody is told. So the sender here waits for
an answer, but not for ever.
"""

import argparse
import sys

import vsock


def receive(port: int) -> None:
    """Print what comes, and answer each datagram."""
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
        sock.connect(address)  # only remembers where `send` goes
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

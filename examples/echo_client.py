"""A client: it sends a text, says that this was all, and prints what comes back.

    python echo_client.py alpha:5000 "hello, guest"

An address is NAME:PORT or CID:PORT; on the host `alpha` is a guest of the switch, in a guest the
host is `host:5000` or `2:5000`.
"""

import argparse
import socket

import vsock


def ask(address: str, text: str) -> str:
    """Return all that the server at `address` answers to `text`."""
    with vsock.create_connection(address, timeout=5) as connection:
        connection.sendall(text.encode())
        # Ends our direction only: the server reads the end, and can still answer.
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("r", encoding="utf-8") as answer:
            return answer.read()


def main() -> None:
    """Ask once."""
    parser = argparse.ArgumentParser(description="Send a text and print the answer.")
    parser.add_argument("address")
    parser.add_argument("text")
    arguments = parser.parse_args()
    print(ask(arguments.address, arguments.text))


if __name__ == "__main__":
    main()

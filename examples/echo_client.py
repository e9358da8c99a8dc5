"""A client: it sends a text, ends its direction of the connection, and prints the answer.

    python echo_client.py alpha:5000 "hello, guest"

An address is NAME:PORT or CID:PORT. On the host, `alpha` is a guest of the switch. In a guest,
`host:5000` and `2:5000` are the host.
"""

import argparse
import socket

import vsock


def ask(address: str, text: str) -> str:
    """Send `text` to the server at `address`, and return its whole answer."""
    with vsock.create_connection(address, timeout=5) as connection:
        connection.sendall(text.encode())
        # Ends this direction only: the server reads the end of the data, and can still answer.
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("r", encoding="utf-8") as answer:
            return answer.read()


def main() -> None:
    """Send one text."""
    parser = argparse.ArgumentParser(description="Send a text and print the answer.")
    parser.add_argument("address")
    parser.add_argument("text")
    arguments = parser.parse_args()
    print(ask(arguments.address, arguments.text))


if __name__ == "__main__":
    main()

"""Python objects between the host and a guest: multiprocessing.connection over VSOCK.

    python3 multiprocessing_connection.py serve 6000 SECRET
    vsock guest run alpha python3 multiprocessing_connection.py ask host:6000 SECRET 3 4 5

In a Linux guest the standard library's Listener of family AF_VSOCK can be the other end. Objects arrive as pickles: accept
them only from programs that you trust as your own.
"""

import sys
from multiprocessing import AuthenticationError

from vsock.adapters.multiprocessing import Client, Listener


def serve(port: int, key: bytes) -> None:
    """Answer each list of numbers with a dictionary."""
    with Listener(port, authkey=key) as listener:
        print(f"listening on port {port}", flush=True)
        while True:
            try:
                with listener.accept() as connection:
                    numbers = connection.recv()
                    connection.send({"sum": sum(numbers), "largest": max(numbers)})
            except (AuthenticationError, EOFError) as error:
                print(str(error) or "the client left", flush=True)


def ask(address: str, key: bytes, numbers: list[int]) -> None:
    """Send a list and print what comes back."""
    with Client(address, authkey=key) as connection:
        connection.send(numbers)
        print(connection.recv())


if __name__ == "__main__":
    command, where, key, *rest = sys.argv[1:]
    if command == "serve":
        serve(int(where), key.encode())
    else:
        ask(where, key.encode(), [int(number) for number in rest])

"""A server: it sends back what each client sends, with one thread per client.

    python echo_server.py 5000

It listens on every CID of this machine. On the host of a switch, guests connect to CID 2
(`host:5000`) and programs on the same machine to CID 1 (`local:5000`). Ctrl-C ends it.
"""

import argparse
import contextlib
import socket
import threading

import vsock


def serve(connection: socket.socket, peer: vsock.Address) -> None:
    """Send everything back until the client ends its data or closes the connection."""
    received = 0
    # BrokenPipeError: the client closed the connection before it read the whole answer.
    with connection, contextlib.suppress(BrokenPipeError):
        while data := connection.recv(65536):
            connection.sendall(data)
            received += len(data)
    print(f"{peer} sent {received} bytes", flush=True)


def main() -> None:
    """Accept connections until interrupted."""
    parser = argparse.ArgumentParser(description="Send back what clients send.")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    with vsock.create_server(arguments.port) as listener:
        print(f"listening on {listener.getsockname()}", flush=True)
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=serve, args=(connection, peer), daemon=True).start()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

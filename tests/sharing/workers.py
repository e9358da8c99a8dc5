"""The functions of the processes in test_passing.py, which import this module by name."""

import json
from typing import Any


def serve_one(listener: Any, connection: Any) -> None:
    """Accept one connection and send this process's address; send the peer's address on the other connection."""
    with listener:
        accepted, _ = listener.accept()
    with accepted:
        told = {
            "ours": accepted.getsockname(),
            "timeout": accepted.gettimeout(),
            "state": "accepted",
        }
        accepted.sendall(json.dumps(told).encode() + b"\n")
    with connection:
        connection.sendall(json.dumps({"theirs": connection.getpeername()}).encode() + b"\n")


def echo_from_pipe(pipe: Any) -> None:
    """Receive a connection from a pipe; send back its timeout and the received data."""
    with pipe.recv() as connection:
        connection.sendall(b"%s " % str(connection.gettimeout()).encode() + connection.recv(100))


def say(connection: Any, what: bytes) -> None:
    """Send something."""
    connection.sendall(what)

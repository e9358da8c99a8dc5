"""What the processes of test_passing.py do; they import this by its name."""

import json
from typing import Any


def serve_one(listener: Any, connection: Any) -> None:
    """Accept one connection and say who we are; and say on the other who its peer is."""
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
    """Take a connection from a pipe and send back what comes, behind its timeout."""
    with pipe.recv() as connection:
        connection.sendall(b"%s " % str(connection.gettimeout()).encode() + connection.recv(100))


def say(connection: Any, what: bytes) -> None:
    """Send something."""
    connection.sendall(what)

"""Many: 100 connections open at the same time, each with a message of its own, whose echo must arrive."""

from vsock.demo.lab import Lab
from vsock.demo.nets import STREAM
from vsock.demo.places import run_pair
from vsock.demo.programs import echo_server, many_clients

CONNECTIONS = 100


def check_many(lab: Lab) -> str:
    """From the host to a guest, from a guest to the host, and between guests."""
    ways = ((lab.host, lab.alpha), (lab.beta, lab.host), (lab.alpha, lab.beta))
    for client, server in ways:
        port = lab.port()
        run_pair(
            server,
            (echo_server, port, STREAM, CONNECTIONS),
            client,
            (many_clients, server.cid, port, CONNECTIONS),
        )
    shown = ", ".join(f"{client.name} to {server.name}" for client, server in ways)
    return f"{CONNECTIONS} each: {shown}"

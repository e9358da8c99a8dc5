"""Ping: the round trip of one byte, from the host to a guest and from the guest to the host."""

from vsock.demo.lab import Lab
from vsock.demo.nets import STREAM
from vsock.demo.places import Place, run_pair
from vsock.demo.programs import echo_server, ping

ROUNDS = 200


def check_ping(lab: Lab, guest: Place) -> str:
    """Both directions; the detail has the medians."""
    medians = []
    for client, server in ((lab.host, guest), (guest, lab.host)):
        port = lab.port()
        _, median = run_pair(
            server, (echo_server, port, STREAM, 1), client, (ping, server.cid, port, ROUNDS)
        )
        medians.append(f"{client.name} to {server.name} {median * 1e6:.0f} µs")
    return ", ".join(medians)

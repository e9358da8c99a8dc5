"""Messages: over SOCK_SEQPACKET each message arrives as one, however many packets it had."""

from vsock.demo.lab import Lab
from vsock.demo.nets import SEQPACKET
from vsock.demo.places import run_pair
from vsock.demo.programs import echo_server, send_messages

SIZES = [1, 44, 3732, 3733, 4096, 20_000, 65_536, 7]
"""A Linux guest's receive buffer holds 3732 bytes: some messages fit exactly, some need many packets."""


def check_messages(lab: Lab) -> str:
    """From the host to a guest, from a guest to the host, and between guests."""
    ways = ((lab.host, lab.alpha), (lab.beta, lab.host), (lab.alpha, lab.beta))
    for client, server in ways:
        port = lab.port()
        run_pair(
            server,
            (echo_server, port, SEQPACKET, 1),
            client,
            (send_messages, server.cid, port, SIZES),
        )
    shown = ", ".join(f"{client.name} to {server.name}" for client, server in ways)
    return f"{len(SIZES)} messages of 1 to 65536 bytes kept whole: {shown}"

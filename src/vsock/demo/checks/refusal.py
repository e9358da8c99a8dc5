"""Refusal: a connection to a port without a listener must fail at once."""

from vsock.demo.lab import Lab
from vsock.demo.programs import refused

ATTEMPTS = 5
SLOWEST_SECONDS = 1.0
"""A refusal takes well under a millisecond in the switch; a connect timeout takes 2 s."""


def check_refusal(lab: Lab) -> str:
    """Between the host and both guests, in each direction."""
    said = []
    ways = (
        (lab.host, lab.alpha),
        (lab.alpha, lab.host),
        (lab.host, lab.beta),
        (lab.beta, lab.host),
    )
    for client, server in ways:
        median = client.start(refused, server.cid, lab.port(), ATTEMPTS).result()
        if median > SLOWEST_SECONDS:
            raise AssertionError(f"{server.name} took {median:.1f} s to refuse {client.name}")
        said.append(f"{client.name} to {server.name} {median * 1e3:.1f} ms")
    return "refused: " + ", ".join(said)

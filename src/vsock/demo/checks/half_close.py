"""Half-close: one side shuts its sending direction down, and still gets the whole answer."""

from vsock.demo.lab import Lab
from vsock.demo.places import run_pair
from vsock.demo.programs import answer_after_end, ask_and_end

SIZE = 200_000


def check_half_close(lab: Lab) -> str:
    """From the host to a guest, from a guest to the host, and between guests."""
    ways = ((lab.host, lab.alpha), (lab.beta, lab.host), (lab.alpha, lab.beta))
    for client, server in ways:
        port = lab.port()
        read, _ = run_pair(
            server, (answer_after_end, port), client, (ask_and_end, server.cid, port, SIZE)
        )
        if read != SIZE:
            raise AssertionError(f"{server.name} read {read} of {SIZE} bytes before the end")
    shown = ", ".join(f"{client.name} to {server.name}" for client, server in ways)
    return f"{SIZE} bytes answered after the end: {shown}"

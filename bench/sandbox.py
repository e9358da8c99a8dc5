"""What the sandbox of the switch's threads costs: one switch with it and one without, by turns."""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import devices
from bench.agents import Agent
from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row, alternate
from bench.sites import GuestSite

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WITH", "WITHOUT", "sandbox"]

WITH, WITHOUT = "with the sandbox", "without"

BULK = 64 * 1024
MIB = 1 << 20


def sandbox(lab: Lab, plan: Plan) -> list[Row]:
    """Bulk and round trips of a guest of either switch."""
    vsock = Path(sys.executable).parent / "vsock"
    with ExitStack() as stack:
        sites: dict[str, GuestSite] = {}
        for name in (WITH, WITHOUT):
            made = devices.switch(vsock, lab.directory(), 1, sandbox=name == WITH)
            device = stack.enter_context(made)
            (seat,) = device.seats
            guest = stack.enter_context(Agent(lab.load, "guest", str(seat.socket)))
            sites[name] = GuestSite(f"sandbox-{name.split()[0]}", device, seat, lab.host, guest)
        rows = []
        for way in ("h2g", "g2h"):
            rates: dict[str, Callable[[], float]] = {
                name: partial(_rate, site, way, plan.seconds) for name, site in sites.items()
            }
            samples, failures = alternate(rates, plan.rounds)
            command = f"{way} {BULK} for {plan.seconds} s"
            rows.append(Row(f"sandbox: bulk {way} 64 KiB", "MiB/s", samples, command, failures))
        pings = {name: partial(site.ping, 64, plan.seconds) for name, site in sites.items()}
        answers, failures = alternate(pings, plan.rounds)
    times = {name: [answer["p50"] for answer in those] for name, those in answers.items()}
    row = Row("sandbox: ping-pong 64 B p50", "µs", times, "ping 64", failures, is_less_better=True)
    return [*rows, row]


def _rate(site: GuestSite, way: str, seconds: float) -> float:
    return site.bulk(way, BULK, seconds).rate / MIB

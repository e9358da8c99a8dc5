"""Figures on a busy machine, such as one that builds and runs tests.

A thread that polls instead of sleeping must not lose its time slice to computing processes.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row, alternate

__all__ = ["busy"]

BULK = 64 * 1024
MIB = 1 << 20


@contextmanager
def _computing() -> Iterator[None]:
    """One process per processor that only computes."""
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        yield


def busy(lab: Lab, plan: Plan) -> list[Row]:
    """Bulk and round trips beside as many computing processes as there are processors."""
    names = [name for name in ("ours", "unix", *lab.peers) if lab.has(name)]
    rounds = max(3, plan.rounds // 3)
    rows = []
    with _computing():
        for direction in ("h2g", "g2h"):
            rates: dict[str, Callable[[], float]] = {
                name: partial(_rate, lab, name, direction, plan.seconds) for name in names
            }
            samples, failures = alternate(rates, rounds)
            command = f"{direction} {BULK} for {plan.seconds} s"
            rows.append(Row(f"busy: bulk {direction} 64 KiB", "MiB/s", samples, command, failures))
        pings = {name: partial(lab.site(name).ping, 64, plan.seconds) for name in names}
        times, failures = alternate(pings, rounds)
    for key in ("p50", "p99"):
        values = {name: [answer[key] for answer in answers] for name, answers in times.items()}
        row = Row(f"busy: ping-pong 64 B {key}", "µs", values, "ping 64", failures)
        row.is_less_better = True
        rows.append(row)
    return rows


def _rate(lab: Lab, name: str, direction: str, seconds: float) -> float:
    return lab.site(name).bulk(direction, BULK, seconds).rate / MIB

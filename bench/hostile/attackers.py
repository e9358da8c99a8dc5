"""How an attack is started and stopped.

An attacker is a context manager that attacks while it is entered. `process` is one process of
`vsock-hostile`. An attacker inside a booted guest (QEMU, User-Mode Linux) is another function of the
same form, and a line of `BY`.
"""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from bench.agents import Agent, AgentError, cpu_seconds
from bench.hostile.arena import Arena, beside_the_switch

__all__ = ["BY", "Attack", "UnplayedError", "busy_loops"]


class UnplayedError(Exception):
    """The attacker did not get to attack."""


class Attack:
    """An attack that goes on."""

    steps = 0
    """What it did, once it is over."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids  # of all that works for the attacker

    def processor_time(self) -> float:
        """Seconds that the attacker has computed."""
        return sum(cpu_seconds(pid) for pid in self._pids)


Attacker = Callable[[Path, Arena, str], AbstractContextManager[Attack]]


@contextmanager
def process(hostile: Path, arena: Arena, name: str) -> Iterator[Attack]:
    """A process with rings, front ends or sockets of its own."""
    sockets = [str(seat.socket) for seat in arena.attackers]
    cids = [str(arena.neighbour.cid), str(arena.accomplice.cid)]
    try:
        with beside_the_switch():
            agent = Agent(hostile, name, str(arena.run), *cids, *sockets)
    except AgentError as error:
        raise UnplayedError(str(error).rpartition(": ")[2]) from error
    with agent:
        attack = Attack([agent.pid, arena.accomplice_pid])
        yield attack
        try:
            attack.steps = agent.ask("stop", timeout=4)["count"]
        except AgentError as error:
            raise UnplayedError(str(error).rpartition(": ")[2]) from error


BY: dict[str, Attacker] = {"process": process}


LOOP = """
import sys, time
share, begin = float(sys.argv[1]), time.monotonic()
while True:
    if time.thread_time() < share * (time.monotonic() - begin):
        for _ in range(1000):
            pass
    else:
        time.sleep(0.001)
"""


@contextmanager
def busy_loops(share: float) -> Iterator[None]:
    """What the control run has in the attacker's place: loops that take this part of a processor."""
    count = math.ceil(share)
    with ExitStack() as stack:
        for _ in range(count):
            with beside_the_switch():
                loop = subprocess.Popen([sys.executable, "-c", LOOP, str(share / count)])
            stack.callback(loop.wait)
            stack.callback(loop.kill)
        yield

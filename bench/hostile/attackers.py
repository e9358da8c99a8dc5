"""How an attack is started and stopped.

An attacker is a context manager that attacks while it is entered. `process` is one process of
`vsock-hostile`; `in_guest` is a program in a Linux guest that was booted for it.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.agents import Agent, AgentError, cpu_seconds
from bench.hostile.arena import Arena, beside_the_switch

if TYPE_CHECKING:
    from vsock.testing.images import Vmm

__all__ = ["BY", "Attack", "UnplayedError", "busy_loops"]


_HERE: Final = Path(__file__).parent


class UnplayedError(Exception):
    """The attacker did not get to attack."""


class Attack:
    """An attack that goes on."""

    steps = 0
    """What it did, once it is over."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids  # of all that works for the attacker

    def processor_time(self) -> float:
        """Seconds that the attacker has computed."""
        total = 0.0
        for pid in self._pids():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                total += cpu_seconds(pid)
        return total


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
        attack = Attack(lambda: [agent.pid, arena.accomplice_pid])
        yield attack
        try:
            attack.steps = agent.ask("stop", timeout=4)["count"]
        except AgentError as error:
            raise UnplayedError(str(error).rpartition(": ")[2]) from error


@contextmanager
def in_guest(vmm: "Vmm", source: Path, _: Path, arena: Arena, name: str) -> Iterator[Attack]:
    """A program that is run in a guest that was booted for it."""
    from vsock import testing

    try:
        with ExitStack() as stack:
            # The guest runs where the thread does that starts it: the first guest's start makes that thread.
            with beside_the_switch():
                guest = testing.boot(str(arena.attackers[0].socket), name, vmm=vmm)
                stack.enter_context(guest)
            program = guest.spawn_python(
                f"{source.read_text()}\nmain()\n", name, str(arena.accomplice.cid)
            )
            program.read_line()
            attack = Attack(lambda: [*_group(guest.pid), arena.accomplice_pid])
            yield attack
            program.write(b"", eof=True)
            attack.steps = int(program.wait(10).check().stdout.split()[-1])
    except testing.GuestError as error:
        raise UnplayedError(str(error).splitlines()[0]) from error


def _group(leader: int) -> list[int]:
    """The processes of a VMM: User-Mode Linux has one for each program of its guest."""
    pids = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())
    found = []
    for pid in pids:
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == leader:
                found.append(pid)
    return found


BY: dict[str, Attacker] = {
    "process": process,
    "uml": partial(in_guest, "uml", _HERE / "inside.py"),
    "qemu": partial(in_guest, "qemu", _HERE / "inside.py"),
    "qemu's kernel": partial(in_guest, "qemu", _HERE / "driver.py"),
}


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

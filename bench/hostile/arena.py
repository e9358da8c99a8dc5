"""The switch under attack, and the neighbour whose suffering is measured.

The switch has one processor, all others share another: what the neighbour loses beyond the control
run is then the switch's doing. A machine with one processor measures without that.
"""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench import devices
from bench.agents import Agent, AgentError
from bench.hostile.judge import Resources, Sample
from bench.lab import raise_descriptor_limit
from bench.sites import GuestSite

__all__ = ["Arena", "ArenaError", "Times", "beside_the_switch"]

SEATS = 6  # the neighbour, the accomplice, four of the attacker's
PLAIN = 2  # of these, how many have no hybrid socket

BULK = 64 * 1024

LOST = 5e6
"""What a ping that does not come back counts, µs: as long as the host program waits for it."""


class ArenaError(Exception):
    """The switch ended, or cut the neighbour off."""


@dataclass(frozen=True)
class Times:
    """How long each part of a sample takes, seconds."""

    ping: float = 0.4
    bulk: float = 0.15
    connect: float = 0.1


def _processors() -> tuple[set[int], set[int]]:
    """Those of the switch, and those of all others."""
    first, *rest = sorted(os.sched_getaffinity(0))
    return ({first}, {rest[0]}) if rest else ({first}, {first})


@contextmanager
def _on(processors: set[int]) -> Iterator[None]:
    """Children that are started inside run there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def beside_the_switch() -> Iterator[None]:
    """Children that are started inside run where neighbour and attacker are."""
    with _on(_processors()[1]):
        yield


def _connect(client: socket.socket, path: Path, deadline: float) -> None:
    """Connects as `vsock.control.client` does: tries again while too many wait at the socket."""
    while True:
        try:
            return client.connect(str(path))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


class Arena:
    """A running switch with a neighbour and an accomplice, until closed."""

    def __init__(self, vsock: Path, load: Path) -> None:
        raise_descriptor_limit()
        with ExitStack() as stack:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-hostile-"))
            with _on(_processors()[0]):
                directory = Path(name) / "switch"
                switch = devices.switch(
                    vsock, directory, SEATS, without_hybrid=PLAIN, log_level="info"
                )
                self.switch = stack.enter_context(switch)
            self.neighbour, self.accomplice, *self.attackers = self.switch.seats
            with beside_the_switch():
                host = stack.enter_context(Agent(load, "host"))
                guest = stack.enter_context(Agent(load, "guest", str(self.neighbour.socket)))
                accomplice = Agent(load, "guest", str(self.accomplice.socket))
                self.accomplice_pid = stack.enter_context(accomplice).pid
            self._site = GuestSite("n", self.switch, self.neighbour, host, guest, endpoint=True)
            assert self.switch.programs
            self.run = self.switch.programs
            # Opens the flows, and warms up.
            self.usual = self.sample(Times(0.1, 0.05, 0.05))
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.close()

    def sample(self, times: Times) -> Sample:
        """Measures the neighbour once.

        Raises:
            ArenaError: it could not even measure.
        """
        try:
            ping = self._site.ping(1, times.ping)
            rates = tuple(self._site.bulk(way, BULK, times.bulk).rate for way in ("h2g", "g2h"))
            connect = self._site.churn(times.connect)
        except (AgentError, OSError) as error:
            raise ArenaError(f"the neighbour was cut off: {error}") from error
        return Sample(
            p50=ping["p50"],
            p99=ping["p99"],
            mean=ping["seconds"] / max(ping["count"], 1) * 1e6,
            stall=ping["max"],
            rates=rates,
            connect=connect["p50"],
            api=self._ask_api(),
        )

    def _ask_api(self) -> float:
        """How long the control API takes for one question, µs; 5 s at most."""
        begin = time.monotonic()
        with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(LOST / 1e6)
            _connect(client, self.run / "control.sock", begin + LOST / 1e6)
            client.sendall(b"GET /v1/switch HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n")
            if client.recv(64).startswith(b"HTTP/1.1 200"):
                return (time.monotonic() - begin) * 1e6
        return LOST

    def resources(self) -> Resources:
        """What the switch holds now.

        Raises:
            ArenaError: it has ended.
        """
        process = Path(f"/proc/{self.switch.pid}")
        try:
            mapped, resident, *_ = map(int, (process / "statm").read_text().split())
            descriptors = len(list((process / "fd").iterdir()))
        except (OSError, ValueError) as error:
            raise ArenaError("the switch has ended") from error
        page = os.sysconf("SC_PAGE_SIZE")
        return Resources(resident * page, descriptors, mapped * page)

    def log_size(self) -> int:
        """Bytes that the switch has logged."""
        return self.switch.log.stat().st_size

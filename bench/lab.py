"""The processes that run while figures are measured, and how to restart those that fail.

One host program and one limit server serve all contenders; each device has its own guests. A peer
that loses bytes, hangs or dies is started again, so that it fails in one figure and not in all.
"""

import resource
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.agents import Agent
from bench.devices import Device
from bench.sites import GuestSite, PlainSite, SiblingSite, Site

__all__ = ["LINUX_BUFFERS", "SEATS", "Lab", "Stand", "raise_descriptor_limit"]

SEATS = 4  # two guests that talk to each other, one with Linux's buffers, one more

LINUX_BUFFERS = ("--rx", "128,3732")
"""The receive buffers of a Linux guest under QEMU: 128, each a page less its bookkeeping."""

MakeDevice = Callable[[Path, int], Device]


@dataclass
class Stand:
    """A device with its guests."""

    device: Device
    guests: list[Agent]
    closing: ExitStack = field(repr=False)


class Lab:
    """Contenders by name: `ours`, the peers, and the limits."""

    def __init__(self, load: Path, makers: dict[str, MakeDevice]) -> None:
        raise_descriptor_limit()
        self.load = load
        self._makers = makers
        self._closing = ExitStack()
        scratch = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        self.scratch = Path(scratch)
        self._next = 0
        self.host = self._closing.enter_context(Agent(load, "host"))
        plain = str(self.scratch / "plain")
        self.server = self._closing.enter_context(Agent(load, "serve", plain))
        self._sites: dict[str, Site] = {
            "unix": PlainSite("unix", self.host, self.server, plain),
            "tcp": PlainSite("tcp", self.host, self.server, plain),
        }
        self.stands: dict[str, Stand] = {}
        for name in makers:
            self.revive(name)

    @property
    def peers(self) -> list[str]:
        """Names of the devices other than the switch."""
        return [name for name in self._makers if name != "ours"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for stand in self.stands.values():
            stand.closing.close()
        self._closing.close()

    def directory(self) -> Path:
        """A new directory for a device."""
        self._next += 1
        return self.scratch / str(self._next)

    def make(self, name: str, guests: int) -> Device:
        """Another device of a name, not part of the lab; the caller closes it."""
        return self._makers[name](self.directory(), guests)

    def revive(self, name: str) -> None:
        """Starts a device and its guests, or starts them again."""
        if name in self.stands:
            self.stands.pop(name).closing.close()
        with ExitStack() as stack:
            device = stack.enter_context(self.make(name, SEATS))
            guests = []
            for number, seat in enumerate(device.seats):
                buffers = LINUX_BUFFERS if number == 2 else ()
                guests.append(
                    stack.enter_context(Agent(self.load, "guest", *buffers, str(seat.socket)))
                )
            self.stands[name] = Stand(device, guests, stack.pop_all())
        self._settle(name)

    def _settle(self, name: str) -> None:
        """Makes the sites of a stand."""
        stand = self.stands[name]
        device, guests, seats = stand.device, stand.guests, stand.device.seats
        label = f"{name}{self._next}"  # the host program may still know flows of an earlier one
        self._sites[name] = GuestSite(label, device, seats[0], self.host, guests[0])
        if len(seats) > 2:
            self._sites[f"{name} linux"] = GuestSite(
                f"{label}-linux", device, seats[2], self.host, guests[2]
            )
        if len(seats) > 1:
            for kind in ("g2g", "g2g wide"):
                self._sites[f"{name} {kind}"] = SiblingSite(
                    label, device, guests[0], guests[1], seats[1].cid, wide="wide" in kind
                )
        if device.programs:
            self._sites[f"{name} endpoint"] = GuestSite(
                f"{label}-endpoint", device, seats[0], self.host, guests[0], endpoint=True
            )

    def has(self, name: str) -> bool:
        """Whether there is such a contender."""
        return name in self._sites

    def site(self, name: str) -> Site:
        """A contender by name."""
        return self._sites[name]


def raise_descriptor_limit() -> None:
    """Raises the limit of descriptors for this process and its children: a flow costs one at each end."""
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""Paths between two processes, all measured in the same way: through a device, or a limit without one.

A *site* moves bytes between a host program (or a guest) and a guest (or its substitute). Flows are
opened when first used and then kept, so that a sample contains only the load.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from bench.agents import Agent, AgentError, Answer, cpu_seconds
from bench.devices import Device, Seat

__all__ = [
    "Bulk",
    "End",
    "GuestSite",
    "LostBytesError",
    "PlainSite",
    "SiblingSite",
    "Site",
    "arrived",
    "transfer",
]

DISCARD, SOURCE, ECHO, GREET, WIDE = 1, 2, 3, 4, 5
GROUP = 100


class LostBytesError(AgentError):
    """Fewer bytes arrived than were sent."""


@dataclass(frozen=True)
class Bulk:
    """One bulk sample."""

    rate: float  # bytes per second
    bytes: int
    cpu: float  # seconds, of all processes on the path
    device_cpu: float
    flows: list[int]


@dataclass(frozen=True)
class End:
    """One end of a transfer: the agent, its order, and the flows."""

    agent: Agent
    order: str
    name: object


class Site(Protocol):
    """A path between two processes."""

    name: str

    def bulk(self, direction: str, size: int, seconds: float, *, flows: int = 1) -> Bulk:
        """Moves bytes in one direction (`h2g`, `g2h`) for a time."""

    def ping(self, size: int, seconds: float) -> Answer:
        """Round trips."""

    def churn(self, seconds: float) -> Answer:
        """Connects, receives a byte, closes."""


class _Flows:
    """Host program on one side, guest or server on the other."""

    group = GROUP  # at the guest; two per site, because a guest may serve several sites

    def __init__(self, name: str, host: Agent, guest: Agent, device: Device | None) -> None:
        self.name = name
        self.host = host
        self.guest = guest
        self.device = device
        self._opened: set[str] = set()

    def address(self, port: int) -> str:
        """The address of a guest's port for host programs."""
        raise NotImplementedError

    def _flow(self, service: int, count: int) -> tuple[str, int]:
        """The name at the host, and the group at the guest, of flows to a service."""
        group = self.group + (count > 1)
        name = f"{self.name}-{service}-{group}"
        if name not in self._opened:
            self.host.ask("open", name, count, self.address(group * 10 + service))
            if service == SOURCE:
                self.host.ask("read", name, 65536)
            self._opened.add(name)
        return name, group

    def bulk(self, direction: str, size: int, seconds: float, *, flows: int = 1) -> Bulk:
        if direction == "h2g":
            name, group = self._flow(DISCARD, flows)
            receiver = End(self.guest, "counts", group)
            sender = End(self.host, "write", name)
        else:
            name, group = self._flow(SOURCE, flows)
            receiver = End(self.host, "counts", name)
            sender = End(self.guest, "source", group)
        return transfer(receiver, sender, size, seconds, [self.host, self.guest], self.device)

    def ping(self, size: int, seconds: float) -> Answer:
        name, _ = self._flow(ECHO, 1)
        return self.host.ask("ping", name, size, seconds)

    def churn(self, seconds: float) -> Answer:
        return self.host.ask("churn", seconds, self.address(self.group * 10 + GREET))


class GuestSite(_Flows):
    """Through a device: over the guest's hybrid socket, or over the switch's own socket."""

    def __init__(
        self,
        name: str,
        device: Device,
        seat: Seat,
        host: Agent,
        guest: Agent,
        *,
        endpoint: bool = False,
    ) -> None:
        super().__init__(name, host, guest, device)
        self._seat = seat
        self._endpoint = endpoint
        if endpoint:
            self.group += 2

    def address(self, port: int) -> str:
        """The address of a guest's port for host programs."""
        if self._endpoint:
            assert self.device
            return f"endpoint {self.device.programs} {self._seat.cid} {port}"
        return f"hybrid {self._seat.hybrid} {port}"


class PlainSite(_Flows):
    """Without a device: Unix or TCP sockets between the same two processes."""

    def __init__(self, name: str, host: Agent, server: Agent, path: str) -> None:
        super().__init__(name, host, server, None)
        self._path = path
        if name == "tcp":
            self.group += 2

    def address(self, port: int) -> str:
        """The address of a guest's port for host programs."""
        if self.name == "tcp":
            return f"tcp {self.guest.hello['tcp'][str(port)]}"
        return f"unix {self._path}_{port}"


class SiblingSite:
    """From guest to guest through one device."""

    def __init__(
        self,
        name: str,
        device: Device,
        source: Agent,
        target: Agent,
        cid: int,
        *,
        wide: bool = False,
    ) -> None:
        self.name = name
        self._device, self._source, self._target, self._cid = device, source, target, cid
        self._service = WIDE if wide else DISCARD
        self._opened: set[int] = set()

    def bulk(self, direction: str, size: int, seconds: float, *, flows: int = 1) -> Bulk:
        """Moves bytes for a time; `direction` is `g2g`."""
        assert direction == "g2g"
        group = GROUP + 10 + self._service + 10 * (flows > 1)
        self._dial(group, self._service, flows)
        receiver = End(self._target, "counts", group)
        sender = End(self._source, "source", group)
        ends = [self._source, self._target]
        return transfer(receiver, sender, size, seconds, ends, self._device)

    def ping(self, size: int, seconds: float) -> Answer:
        """Round trips."""
        group = GROUP + 10 + ECHO
        self._dial(group, ECHO, 1)
        return self._source.ask("ping", group, size, seconds)

    def churn(self, seconds: float) -> Answer:
        """Not measured between guests."""
        raise NotImplementedError

    def _dial(self, group: int, service: int, flows: int) -> None:
        if group not in self._opened:
            self._source.ask("dial", self._cid, group * 10 + service, group, flows, timeout=5)
            self._opened.add(group)


def transfer(
    receiver: End,
    sender: End,
    size: int,
    seconds: float,
    ends: list[Agent],
    device: Device | None,
) -> Bulk:
    """Sends for a time and waits for the last byte; the rate is the receiver's."""

    def cpu() -> tuple[float, float]:
        return sum(cpu_seconds(end.pid) for end in ends), cpu_seconds(device.pid) if device else 0.0

    receiver.agent.ask("reset", receiver.name)
    ends_before, device_before = cpu()
    sender.agent.tell(sender.order, sender.name, size, seconds)
    sent: int = sender.agent.answer(seconds + 15)["bytes"]
    got = arrived(receiver, sent)
    ends_after, device_after = cpu()
    device_cpu = device_after - device_before
    rate = sent / max(got["seconds"], 1e-6)
    return Bulk(rate, sent, ends_after - ends_before + device_cpu, device_cpu, got["flows"])


def arrived(receiver: End, sent: int) -> Answer:
    """Waits until `sent` bytes have been received, and checks that no more follow."""
    deadline = time.monotonic() + 5
    while (got := receiver.agent.ask(receiver.order, receiver.name))["bytes"] < sent:
        if time.monotonic() > deadline:
            raise LostBytesError(f"{sent - got['bytes']} of {sent} bytes did not arrive")
        time.sleep(0.002)
    if got["bytes"] != sent or got["wrong"]:
        raise LostBytesError(f"{got['bytes']} bytes for {sent}, {got['wrong']} pieces wrong")
    return got

"""Figures of scale: a greedy neighbour, a thousand guests, a hundred thousand flows; and content."""

import resource
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.agents import Agent, Answer, cpu_seconds
from bench.devices import Device
from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row, alternate
from bench.sites import Bulk, End, GuestSite, SiblingSite, Site, transfer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["content", "greedy", "many_flows", "many_guests"]

KIB = 1024
MIB = 1 << 20
SMALL_BUFFERS = ("--rx", "16,4096", "--tx", "8,4096")  # for guests that stay idle
BULK = 64 * KIB
GREEDY_FLOWS = 32
SPARE_DESCRIPTORS = 3000  # for the device besides flows: mostly 16 per guest


def greedy(lab: Lab, plan: Plan) -> list[Row]:
    """A guest with one flow, alone and beside a guest with 32 flows that send without pause."""
    stand = lab.stands["ours"]
    seats, guests = stand.device.seats, stand.guests
    with Agent(lab.load, "host") as his, Agent(lab.load, "host") as mine:
        polite = GuestSite("polite", stand.device, seats[3], mine, guests[3])
        his.ask("open", "greedy", GREEDY_FLOWS, f"hybrid {seats[0].hybrid} 1501")

        # The effect of such a load on a neighbour without a common device.
        his.ask("open", "plain", GREEDY_FLOWS, f"unix {lab.scratch / 'plain'}_1031")

        def beside(flows: str) -> Answer:
            his.tell("write", flows, BULK, plan.seconds + 0.1)
            time.sleep(0.05)  # the greedy guest's load is under way
            answer = polite.ping(64, plan.seconds)
            his.answer()
            return answer

        pings: dict[str, Callable[[], Answer]] = {
            "alone": partial(polite.ping, 64, plan.seconds),
            "beside a greedy guest": partial(beside, "greedy"),
            "beside Unix streams": partial(beside, "plain"),
        }
        times, failures = alternate(pings, plan.rounds)
        share = partial(_share, his, polite, plan.seconds)
        shares, share_failures = alternate({"polite guest": share}, plan.rounds)
    p50 = {name: [answer["p50"] for answer in answers] for name, answers in times.items()}
    return [
        Row("polite ping p50", "µs", p50, "ping 64 beside 32 flows h2g", failures),
        Row("polite share", "of all bytes", shares, "h2g 1 flow beside 32", share_failures),
    ]


def _share(his: Agent, polite: GuestSite, seconds: float) -> float:
    """The polite guest's share of all bytes while both guests send without pause."""
    his.tell("write", "greedy", BULK, seconds)
    got = polite.bulk("h2g", BULK, seconds).bytes
    taken: int = his.answer()["bytes"]
    return got / (got + taken)


def _anonymous(pid: int) -> int:
    """Bytes of the process's anonymous memory, without the memory of guests."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * KIB


def _pair(lab: Lab, stack: ExitStack, guests: int) -> tuple[Device, GuestSite]:
    """Another switch, with one guest that will be active."""
    device = stack.enter_context(lab.make("ours", guests))
    first = stack.enter_context(Agent(lab.load, "guest", str(device.seats[0].socket)))
    site = GuestSite(f"of-{guests}-{device.pid}", device, device.seats[0], lab.host, first)
    return device, site


def _active(plan: Plan, what: str, few: GuestSite, many: GuestSite) -> list[Row]:
    """Bulk and ping-pong of one flow, with and without the many others."""
    rounds = max(3, plan.rounds // 2)
    sites = {"with many": many, "alone": few}
    bulks, failures = alternate(
        {name: partial(site.bulk, "h2g", BULK, plan.seconds) for name, site in sites.items()},
        rounds,
    )
    rates = {name: [bulk.rate / MIB for bulk in of] for name, of in bulks.items()}
    pings, ping_failures = alternate(
        {name: partial(site.ping, 64, plan.seconds) for name, site in sites.items()}, rounds
    )
    p50 = {name: [answer["p50"] for answer in of] for name, of in pings.items()}
    return [
        Row(f"{what}: active bulk h2g", "MiB/s", rates, "h2g 65536", failures),
        Row(f"{what}: active ping p50", "µs", p50, "ping 64", ping_failures, is_less_better=True),
    ]


def many_guests(lab: Lab, plan: Plan) -> list[Row]:
    """A thousand idle guests."""
    count = 200 if plan.quick else 1000
    with ExitStack() as stack:
        _, few = _pair(lab, stack, 2)
        device, many = _pair(lab, stack, count + 2)
        many.ping(64, 0.05)
        before = _anonymous(device.pid)
        sockets = [str(seat.socket) for seat in device.seats[2:]]
        stack.enter_context(Agent(lab.load, "guest", *SMALL_BUFFERS, *sockets, timeout=120))
        each = (_anonymous(device.pid) - before) / count / KIB
        start, used = time.monotonic(), cpu_seconds(device.pid)
        time.sleep(1 if plan.quick else 3)
        idle = (cpu_seconds(device.pid) - used) / (time.monotonic() - start) * 100
        command = f"{count} guests"
        what = "1,000 guests"
        return [
            Row(f"{what}: memory of each", "KiB", {"ours": [each]}, command),
            Row(f"{what}: idle", "% of a core", {"ours": [idle]}, command),
            *_active(plan, what, few, many),
        ]


def many_flows(lab: Lab, plan: Plan) -> list[Row]:
    """A hundred thousand open flows over a hundred guests, of which then a hundred are active.

    Limited by the number of descriptors: a flow costs one at the device and one at the program.
    """
    guests, each = (20, 500) if plan.quick else (100, 1000)
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    each = min(each, (most - SPARE_DESCRIPTORS) // guests)
    with ExitStack() as stack:
        _, few = _pair(lab, stack, 2)
        device, many = _pair(lab, stack, guests + 1)
        host = stack.enter_context(Agent(lab.load, "host", timeout=120))
        sockets = [str(seat.socket) for seat in device.seats[1:]]
        crowd = stack.enter_context(Agent(lab.load, "guest", *SMALL_BUFFERS, *sockets, timeout=120))
        many.ping(64, 0.05)
        active = partial(_all_together, host, crowd, device, plan.seconds)
        for seat in device.seats[1:]:
            host.ask("open", "active", 1, f"hybrid {seat.hybrid} 1701")
        without = [active().rate / MIB for _ in range(plan.rounds)]
        before = _anonymous(device.pid)
        for seat in device.seats[1:]:
            host.ask("open", "idle", each, f"hybrid {seat.hybrid} 1601")
        count = guests * each
        memory = (_anonymous(device.pid) - before) / count / KIB
        beside = [active().rate / MIB for _ in range(plan.rounds)]
        command = f"{count} flows over {guests} guests; {most} descriptors allowed"
        what = "many flows"
        rates = {"with many": beside, "alone": without}
        return [
            Row(f"{what}: memory of each", "KiB", {"ours": [memory]}, command),
            Row(f"{what}: one active flow per guest", "MiB/s", rates, command),
            *_active(plan, what, few, many),
        ]


def _all_together(host: Agent, crowd: Agent, device: Device, seconds: float) -> Bulk:
    """One active flow of each guest."""
    receiver, sender = End(crowd, "counts", 170), End(host, "write", "active")
    return transfer(receiver, sender, BULK, seconds, [host, crowd], device)


def content(lab: Lab, plan: Plan) -> list[Row]:
    """Not a speed: compares every byte of every path with the bytes sent."""
    checked: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for name in ("ours", *lab.peers):
        with ExitStack() as stack:
            device = stack.enter_context(lab.make(name, 2))
            host = stack.enter_context(Agent(lab.load, "host", "--check"))
            agents = [
                stack.enter_context(Agent(lab.load, "guest", "--check", str(seat.socket)))
                for seat in device.seats
            ]
            site = GuestSite(f"checked-{name}", device, device.seats[0], host, agents[0])
            ways: list[tuple[Site, str]] = [(site, "h2g"), (site, "g2h")]
            if len(agents) > 1:
                other = device.seats[1].cid
                ways.append((SiblingSite("checked", device, agents[0], agents[1], other), "g2g"))
            measures = {
                f"{name} {direction} {size}": partial(_checked, way, direction, size, plan.seconds)
                for way, direction in ways
                for size in (BULK, 1000)
            }
            samples, failed = alternate(measures, 1)
            checked |= samples
            failures |= failed
    return [Row("content checked", "MiB", checked, "--check", failures, compares=False)]


def _checked(site: Site, direction: str, size: int, seconds: float) -> float:
    return site.bulk(direction, size, seconds).bytes / MIB

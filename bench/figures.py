"""The figures: what is measured, against what, in which rows.

Each function measures one group of rows and can run alone (`python -m bench --only NAME`).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from bench.agents import once
from bench.busy import busy
from bench.copies import copies
from bench.hostile.rows import hostile
from bench.lab import Lab
from bench.plan import Plan
from bench.reach import reach
from bench.real import real_guests
from bench.rows import Row, alternate
from bench.sandbox import sandbox
from bench.scale import content, greedy, many_flows, many_guests
from bench.sites import Bulk, Site

__all__ = ["FIGURES"]

T = TypeVar("T")

KIB = 1024
MIB = 1 << 20
GIB = 1 << 30


def _broken(lab: Lab) -> Callable[[str], None]:
    """What to do when a contender fails: start its device again."""

    def revive(name: str) -> None:
        device = name.split(maxsplit=1)[0]
        if device in lab.stands:
            lab.revive(device)

    return revive


def _size(size: int) -> str:
    return f"{size // KIB} KiB" if size >= KIB else f"{size} B"


def _measures(lab: Lab, names: list[str], do: Callable[[Site], T]) -> dict[str, Callable[[], T]]:
    """The same measurement for every contender; looked up each time, as a broken one is replaced."""

    def measure(name: str) -> T:
        return do(lab.site(name))

    return {name: partial(measure, name) for name in names if lab.has(name)}


def _bulk_rows(
    lab: Lab,
    plan: Plan,
    direction: str,
    size: int,
    contenders: list[str],
    limits: dict[str, Callable[[], Bulk]],
) -> list[Row]:
    """Throughput, and processor time per GiB, of one direction and size."""
    measures = _measures(lab, contenders, lambda site: site.bulk(direction, size, plan.seconds))
    samples, failures = alternate(measures | limits, plan.rounds, broken=_broken(lab))
    what = f"{direction} {_size(size)}"
    rate = {name: [bulk.rate / MIB for bulk in bulks] for name, bulks in samples.items()}
    command = f"{direction} {size} for {plan.seconds} s"
    rows = [Row(f"bulk {what}", "MiB/s", rate, command, failures)]
    through = {name: bulks for name, bulks in samples.items() if name not in limits}
    cpu = {name: [b.cpu / b.bytes * GIB for b in bulks] for name, bulks in through.items()}
    rows.append(Row(f"CPU per GiB {what}", "s", cpu, command, failures, is_less_better=True))
    device = {
        name: [b.device_cpu / b.bytes * GIB for b in bulks]
        for name, bulks in through.items()
        if name not in ("unix", "tcp")
    }
    rows.append(
        Row(f"device CPU per GiB {what}", "s", device, command, failures, is_less_better=True)
    )
    return rows


def bulk(lab: Lab, plan: Plan) -> list[Row]:
    """One flow, 64 KiB and 4 KiB operations, each way."""
    rows = []
    for size in (64 * KIB, 4 * KIB):
        for direction in ("h2g", "g2h"):
            rows += _bulk_rows(lab, plan, direction, size, _host_contenders(lab, plan), {})
    return rows


def small(lab: Lab, plan: Plan) -> list[Row]:
    """64 byte messages, one flow."""
    rows = []
    for direction in ("h2g", "g2h"):
        rows += _bulk_rows(lab, plan, direction, 64, _host_contenders(lab, plan), {})
    return rows


def _host_contenders(lab: Lab, plan: Plan) -> list[str]:
    ours = ["ours", "unix"] if plan.quick else ["ours", "unix", "ours endpoint", "ours linux"]
    return [*ours, *lab.peers, "tcp"]


def siblings(lab: Lab, plan: Plan) -> list[Row]:
    """Guest to guest, against a copy between two shared mappings of the same sizes.

    "wide": the receiver has a buffer of 4 MiB; else it has 256 KiB, Linux's default.
    """
    rows = []
    for size in (64 * KIB, 4 * KIB, 64):
        names = ["ours g2g", *(f"{peer} g2g" for peer in lab.peers)]
        if size == 64 * KIB:
            names.insert(1, "ours g2g wide")
        rows += _bulk_rows(
            lab, plan, "g2g", size, names, {"memcpy": partial(_memcpy, lab, size, plan.seconds)}
        )
    return rows


def _memcpy(lab: Lab, size: int, seconds: float) -> Bulk:
    """A copy between mappings of the size of the sender's and the receiver's buffers."""
    sent, received = 64 * 64 * KIB, 256 * 64 * KIB
    answer = once(lab.load, "memcpy", size, sent, received, min(seconds, 0.2))
    return Bulk(answer["bytes"] / answer["seconds"], answer["bytes"], answer["seconds"], 0.0, [])


def ping(lab: Lab, plan: Plan) -> list[Row]:
    """Round trips of 64 bytes."""
    names = [
        "ours",
        "unix",
        "ours endpoint",
        *lab.peers,
        "tcp",
        "ours g2g",
        *(f"{p} g2g" for p in lab.peers),
    ]
    measures = _measures(lab, names, lambda site: site.ping(64, plan.seconds))
    measures["eventfd"] = lambda: once(lab.load, "eventfd", min(plan.seconds, 0.2))
    samples, failures = alternate(measures, plan.rounds, broken=_broken(lab))
    rows = []
    for key, label in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")):
        values = {name: [answer[key] for answer in answers] for name, answers in samples.items()}
        if key == "p50":
            pairs = zip(values["unix"], values["eventfd"], strict=True)
            values["unix + eventfd"] = [unix + eventfd for unix, eventfd in pairs]
        command = f"ping 64 bytes for {plan.seconds} s"
        rows.append(
            Row(f"ping-pong 64 B {label}", "µs", values, command, failures, is_less_better=True)
        )
    return rows


def churn(lab: Lab, plan: Plan) -> list[Row]:
    """Connect, take one byte, close."""
    names = ["ours", "unix", "ours endpoint", *lab.peers, "tcp"]
    measures = _measures(lab, names, lambda site: site.churn(plan.seconds))
    samples, failures = alternate(measures, plan.rounds, broken=_broken(lab))
    rates = {
        name: [a["count"] / a["seconds"] for a in answers] for name, answers in samples.items()
    }
    tails = {name: [a["p99"] for a in answers] for name, answers in samples.items()}
    command = f"churn for {plan.seconds} s"
    return [
        Row("connect, byte, close", "1/s", rates, command, failures),
        Row("connect, byte, close p99", "µs", tails, command, failures, is_less_better=True),
    ]


def flows(lab: Lab, plan: Plan) -> list[Row]:
    """32 flows against one: their total and the slowest of them, and the same with Unix pairs."""
    rows = []
    for direction in ("h2g", "g2h", "g2g"):
        names = {"": "ours g2g"} if direction == "g2g" else {"": "ours", " unix": "unix"}
        measures = {
            f"{count}{label}": partial(_bulk_over, lab, name, direction, plan.seconds, count)
            for label, name in names.items()
            for count in (1, 32)
        }
        samples, failures = alternate(measures, plan.rounds, broken=lambda _: lab.revive("ours"))
        rates = {name: [bulk.rate / MIB for bulk in bulks] for name, bulks in samples.items()}
        shares = {
            label.strip() or "ours": [_slowest(bulk.flows) for bulk in samples[f"32{label}"]]
            for label in names
        }
        command = f"{direction} 65536 for {plan.seconds} s over 32 flows"
        rows.append(Row(f"flows {direction}", "MiB/s", rates, command, failures))
        rows.append(Row(f"slowest of 32 {direction}", "of the mean", shares, command, failures))
    return rows


def _slowest(flows: list[int]) -> float:
    """Bytes of the slowest flow, divided by the mean."""
    return min(flows) / (sum(flows) / len(flows))


def _bulk_over(lab: Lab, name: str, direction: str, seconds: float, flows: int) -> Bulk:
    return lab.site(name).bulk(direction, 64 * KIB, seconds, flows=flows)


Figure = Callable[[Lab, Plan], Iterable[Row]]

FIGURES: dict[str, Figure] = {
    "bulk": bulk,
    "siblings": siblings,
    "small": small,
    "ping": ping,
    "churn": churn,
    "flows": flows,
    "greedy": greedy,
    "busy": busy,
    "sandbox": sandbox,
    "many-guests": many_guests,
    "many-flows": many_flows,
    "content": content,
    "real": real_guests,
    "copies": copies,
    "reach": reach,
    "hostile": hostile,
}

"""The goals, each computed from the rows.

Some goals have a limit: the result of something else in the same run on the same scale, such as a
plain Unix pair in place of the switch. A goal beyond its limit cannot be reached on this machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.hostile.cases import Case, playable
from bench.hostile.rows import ATTACKED, CONTROL, row_name
from bench.rows import Row
from bench.sandbox import WITH, WITHOUT

__all__ = ["Goal", "judge"]

Value = Callable[[dict[str, Row]], float | None]

BESIDE = "beside a greedy guest"


@dataclass(frozen=True)
class Goal:
    """One goal and its value in this run."""

    name: str
    value: float | None  # None: not measured
    goal: str
    ok: bool | None
    limit: float | None = None
    """The value of the limit."""
    limit_is: str = ""


@dataclass(frozen=True)
class _Rule:
    """`value(rows)` must be at least, or at most, `bound`."""

    name: str
    value: Value
    bound: float
    at_most: bool = False
    limit: tuple[str, Value] | None = None
    """What is measured in place of the switch, and its value."""


def _ratio(row: str, to: str, *, of: str = "ours") -> Value:
    """The result of `of` in a row, divided by that of `to`."""

    def value(rows: dict[str, Row]) -> float | None:
        if row not in rows:
            return None
        spread = rows[row].ratio(of, to)
        return spread.median if spread else None

    return value


def _median(row: str, of: str = "ours") -> Value:
    def value(rows: dict[str, Row]) -> float | None:
        spread = rows[row].spread(of) if row in rows else None
        return spread.median if spread else None

    return value


def _slower(row: str) -> Value:
    return _ratio(row, "with many", of="alone")


def _with_many(row: str) -> Value:
    return _ratio(row, "alone", of="with many")


def _tail(of: str) -> Value:
    """p99.9 over p50 of a ping-pong, round by round."""

    def value(rows: dict[str, Row]) -> float | None:
        if "ping-pong 64 B p99.9" not in rows:
            return None
        tail = rows["ping-pong 64 B p99.9"].samples.get(of, [])
        middle = rows["ping-pong 64 B p50"].samples.get(of, [])
        ratios = sorted(t / m for t, m in zip(tail, middle, strict=True))
        return ratios[len(ratios) // 2] if ratios else None

    return value


_RULES = [
    _Rule("1 bulk h2g 64 KiB of Unix pair", _ratio("bulk h2g 64 KiB", "unix"), 1.0),
    _Rule("1 bulk g2h 64 KiB of Unix pair", _ratio("bulk g2h 64 KiB", "unix"), 0.95),
    _Rule("2 bulk h2g 4 KiB of Unix pair", _ratio("bulk h2g 4 KiB", "unix"), 0.9),
    _Rule("2 bulk g2h 4 KiB of Unix pair", _ratio("bulk g2h 4 KiB", "unix"), 1.5),
    _Rule(
        "3 bulk g2g 64 KiB of memcpy, 256 KiB of credit",
        _ratio("bulk g2g 64 KiB", "memcpy", of="ours g2g"),
        0.6,
    ),
    _Rule(
        "3 bulk g2g 64 KiB of memcpy, 4 MiB of credit",
        _ratio("bulk g2g 64 KiB", "memcpy", of="ours g2g wide"),
        0.6,
    ),
    _Rule("4 64 B g2h of Unix pair", _ratio("bulk g2h 64 B", "unix"), 3.0),
    _Rule("4 64 B h2g of Unix pair", _ratio("bulk h2g 64 B", "unix"), 0.9),
    _Rule(
        "5 ping-pong p50 of Unix + eventfd",
        _ratio("ping-pong 64 B p50", "unix + eventfd"),
        1.25,
        True,
    ),
    _Rule(
        "5 ping-pong p99.9 of p50", _tail("ours"), 5.0, True, ("eventfd alone", _tail("eventfd"))
    ),
    _Rule("6 connects of Unix connect/accept", _ratio("connect, byte, close", "unix"), 0.5),
    *(
        _Rule(
            f"7 32 flows {way} of one",
            _ratio(f"flows {way}", "1", of="32"),
            0.95,
            limit=("Unix pairs", _ratio(f"flows {way}", "1 unix", of="32 unix")),
        )
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(
            f"7 slowest of 32 {way}",
            _median(f"slowest of 32 {way}"),
            0.8,
            limit=("Unix pairs", _median(f"slowest of 32 {way}", "unix")),
        )
        for way in ("h2g", "g2h")
    ),
    _Rule(
        "8 polite p50 of alone",
        _ratio("polite ping p50", "alone", of=BESIDE),
        2.0,
        True,
        ("beside Unix streams", _ratio("polite ping p50", "alone", of="beside Unix streams")),
    ),
    _Rule("8 polite share of the rate", _median("polite share", "polite guest"), 0.45),
    _Rule("9 memory of an idle guest, KiB", _median("1,000 guests: memory of each"), 150, True),
    _Rule("9 idle, % of a core", _median("1,000 guests: idle"), 1.0, True),
    _Rule("9 active bulk slower by", _slower("1,000 guests: active bulk h2g"), 1.1, True),
    _Rule("9 active ping slower by", _with_many("1,000 guests: active ping p50"), 1.1, True),
    *(
        _Rule(
            f"11 real {vmm} {way} of the guest's loopback",
            _ratio(f"real {vmm} {way}", "guest's loopback"),
            1.0,
        )
        for vmm in ("uml", "qemu")
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(
            f"11 real qemu {way} of user-mode TCP", _ratio(f"real qemu {way}", "user-mode TCP"), 3.0
        )
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(f"13 cp uml {way} of vsock cat", _ratio(f"copy uml {way}", "vsock cat"), 0.7)
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(f"13 cp qemu {way} of scp", _ratio(f"copy qemu {way}", "scp"), 5.0)
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(
            f"13 cp qemu {way} of scp, user-mode TCP",
            _ratio(f"copy qemu {way}", "scp, user-mode TCP"),
            1.5,
        )
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(f"13 cp {vmm} small files of scp", _ratio(f"copy {vmm} small files", "scp -r"), 3.0)
        for vmm in ("uml", "qemu")
    ),
    *(
        _Rule(f"13 cp {vmm} memory of the host, MiB", _median(f"copy {vmm} memory"), 64, True)
        for vmm in ("uml", "qemu")
    ),
    _Rule(
        "13 exec in a kept session, ms",
        _median("exec uml"),
        150,
        True,
        ("vsock --version", _median("exec uml", "vsock --version")),
    ),
    _Rule("13 exec that logs in, of ssh", _ratio("exec uml", "ssh", of="ours cold"), 3.0, True),
    _Rule("13 forward p50 of plain vsock", _ratio("forward ping p50", "plain vsock"), 1.3, True),
    *(
        _Rule(f"13 forward {way} of plain vsock", _ratio(f"forward {way}", "plain vsock"), 0.7)
        for way in ("h2g", "g2h")
    ),
    *(
        _Rule(
            f"13 sandbox: bulk {way} of without",
            _ratio(f"sandbox: bulk {way} 64 KiB", WITHOUT, of=WITH),
            0.97,
        )
        for way in ("h2g", "g2h")
    ),
    _Rule(
        "13 sandbox: ping-pong p50 of without",
        _ratio("sandbox: ping-pong 64 B p50", WITHOUT, of=WITH),
        1.03,
        True,
    ),
    _Rule("10 memory of an idle flow, KiB", _median("many flows: memory of each"), 2.0, True),
    _Rule("10 active flows slower by", _slower("many flows: one active flow per guest"), 1.2, True),
    _Rule("10 active bulk slower by", _slower("many flows: active bulk h2g"), 1.2, True),
    _Rule("10 active ping slower by", _with_many("many flows: active ping p50"), 1.2, True),
]


def _hostile_rules(case: Case) -> list[_Rule]:
    def rule(figure: str, bound: float, *, at_most: bool) -> _Rule:
        value = _ratio(row_name(case, figure), CONTROL, of=ATTACKED)
        return _Rule(f"13 {figure} beside {case.name}", value, bound, at_most)

    return [
        rule("p50", case.limits.p50, at_most=True),
        rule("p99", case.limits.p99, at_most=True),
        rule("bulk", case.limits.rate, at_most=False),
    ]


def _peer_rules(peer: str) -> list[_Rule]:
    rules = []
    for direction in ("h2g", "g2h", "g2g"):
        us, them = ("ours g2g", f"{peer} g2g") if direction == "g2g" else ("ours", peer)
        for size in ("64 KiB", "4 KiB"):
            what = f"{direction} {size}"
            limit = None if direction == "g2g" else _unix(f"bulk {what}", them)
            rate = _ratio(f"bulk {what}", them, of=us)
            rules.append(_Rule(f"12 bulk {what} of {peer}", rate, 3.0, limit=limit))
            cpu = _ratio(f"CPU per GiB {what}", them, of=us)
            rules.append(_Rule(f"12 CPU per GiB {what} of {peer}", cpu, 1.0, True))
    rules += [
        _Rule(
            f"4 64 B {direction} of {peer}",
            _ratio(f"bulk {direction} 64 B", peer),
            5.0,
            limit=_unix(f"bulk {direction} 64 B", peer),
        )
        for direction in ("h2g", "g2h")
    ]
    connects = "connect, byte, close"
    limit = _unix(connects, peer)
    rules.append(_Rule(f"6 connects of {peer}", _ratio(connects, peer), 5.0, limit=limit))
    return rules


def _unix(row: str, peer: str) -> tuple[str, Value]:
    return "Unix pair", _ratio(row, peer, of="unix")


def judge(rows: list[Row], peers: list[str]) -> list[Goal]:
    """Every goal, in the order of the list of goals."""
    by_name = {row.name: row for row in rows}
    rules = [*_RULES, *(rule for peer in peers for rule in _peer_rules(peer))]
    rules += [rule for case in playable() for rule in _hostile_rules(case)]
    goals = []
    for rule in sorted(rules, key=lambda rule: int(rule.name.split()[0])):
        value = rule.value(by_name)
        sign = "≤" if rule.at_most else "≥"
        ok = (
            None
            if value is None
            else (value <= rule.bound if rule.at_most else value >= rule.bound)
        )
        limit_is, limit = rule.limit or ("", None)
        reached = limit(by_name) if limit else None
        goals.append(Goal(rule.name, value, f"{sign} {rule.bound:g}", ok, reached, limit_is))
    return goals

"""What is to be reached: one goal per line, computed from the rows."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.rows import Row

__all__ = ["Goal", "judge"]


@dataclass(frozen=True)
class Goal:
    """One goal and how far we are."""

    name: str
    value: float | None  # None: not measured
    goal: str
    ok: bool | None


@dataclass(frozen=True)
class _Rule:
    """`value(rows)` is to be at least, or at most, `bound`."""

    name: str
    value: Callable[[dict[str, Row]], float | None]
    bound: float
    at_most: bool = False


def _ratio(
    row: str, to: str, *, of: str = "ours", inverse: bool = False
) -> Callable[[dict[str, Row]], float | None]:
    """How many times `to` we reach in a row."""

    def value(rows: dict[str, Row]) -> float | None:
        if row not in rows:
            return None
        spread = rows[row].ratio(to, of) if inverse else rows[row].ratio(of, to)
        return spread.median if spread else None

    return value


def _median(row: str, of: str = "ours") -> Callable[[dict[str, Row]], float | None]:
    def value(rows: dict[str, Row]) -> float | None:
        spread = rows[row].spread(of) if row in rows else None
        return spread.median if spread else None

    return value


def _tail(rows: dict[str, Row]) -> float | None:
    """p99.9 over p50 of our ping-pong, round by round."""
    if "ping-pong 64 B p99.9" not in rows:
        return None
    tail = rows["ping-pong 64 B p99.9"].samples.get("ours", [])
    middle = rows["ping-pong 64 B p50"].samples.get("ours", [])
    ratios = sorted(t / m for t, m in zip(tail, middle, strict=True))
    return ratios[len(ratios) // 2] if ratios else None


_RULES = [
    _Rule("1 bulk h2g 64 KiB of Unix pair", _ratio("bulk h2g 64 KiB", "unix"), 1.0),
    _Rule("1 bulk g2h 64 KiB of Unix pair", _ratio("bulk g2h 64 KiB", "unix"), 0.95),
    _Rule("2 bulk h2g 4 KiB of Unix pair", _ratio("bulk h2g 4 KiB", "unix"), 0.9),
    _Rule("2 bulk g2h 4 KiB of Unix pair", _ratio("bulk g2h 4 KiB", "unix"), 1.5),
    _Rule("3 bulk g2g 64 KiB of memcpy", _ratio("bulk g2g 64 KiB", "memcpy", of="ours g2g"), 0.6),
    _Rule("4 64 B g2h of Unix pair", _ratio("bulk g2h 64 B", "unix"), 3.0),
    _Rule("4 64 B h2g of Unix pair", _ratio("bulk h2g 64 B", "unix"), 0.9),
    _Rule(
        "5 ping-pong p50 of Unix + eventfd",
        _ratio("ping-pong 64 B p50", "unix + eventfd"),
        1.25,
        True,
    ),
    _Rule("5 ping-pong p99.9 of p50", _tail, 5.0, True),
    _Rule("6 connects of Unix connect/accept", _ratio("connect, byte, close", "unix"), 0.5),
    _Rule("7 32 flows h2g of one", _ratio("flows h2g", "1", of="32"), 0.95),
    _Rule("7 32 flows g2h of one", _ratio("flows g2h", "1", of="32"), 0.95),
    _Rule("7 slowest of 32 h2g", _median("slowest of 32 h2g"), 0.8),
    _Rule("7 slowest of 32 g2h", _median("slowest of 32 g2h"), 0.8),
]


def _peer_rules(peer: str) -> list[_Rule]:
    rules = []
    for direction in ("h2g", "g2h", "g2g"):
        us, them = ("ours g2g", f"{peer} g2g") if direction == "g2g" else ("ours", peer)
        for size in ("64 KiB", "4 KiB"):
            what = f"{direction} {size}"
            rules.append(
                _Rule(f"12 bulk {what} of {peer}", _ratio(f"bulk {what}", them, of=us), 3.0)
            )
            cpu = _ratio(f"CPU per GiB {what}", them, of=us)
            rules.append(_Rule(f"12 CPU per GiB {what} of {peer}", cpu, 1.0, True))
    rules += [
        _Rule(f"4 64 B {direction} of {peer}", _ratio(f"bulk {direction} 64 B", peer), 5.0)
        for direction in ("h2g", "g2h")
    ]
    rules.append(_Rule(f"6 connects of {peer}", _ratio("connect, byte, close", peer), 5.0))
    return rules


def judge(rows: list[Row], peers: list[str]) -> list[Goal]:
    """Every goal, in the order of the list of goals."""
    by_name = {row.name: row for row in rows}
    rules = [*_RULES, *(rule for peer in peers for rule in _peer_rules(peer))]
    goals = []
    for rule in sorted(rules, key=lambda rule: int(rule.name.split()[0])):
        value = rule.value(by_name)
        sign = "≤" if rule.at_most else "≥"
        ok = (
            None
            if value is None
            else (value <= rule.bound if rule.at_most else value >= rule.bound)
        )
        goals.append(Goal(rule.name, value, f"{sign} {rule.bound:g}", ok))
    return goals

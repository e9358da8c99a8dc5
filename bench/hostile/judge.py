"""Judges what a neighbour suffered: pure, from samples to faults.

Every figure is the median over rounds of the ratio to the control run of the same round, in which busy
loops run in the attacker's place.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Limits", "Played", "Resources", "Round", "Sample", "Verdict", "judge", "worse_rates"]

MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """What the neighbour measured once; times in µs, rates in bytes per second."""

    p50: float
    p99: float
    mean: float
    """Shows stalls that are too few for p99, and p99s that are as bad in the control run."""
    stall: float
    """The longest ping."""
    rates: tuple[float, ...]
    """Bulk to the neighbour, and from it."""
    connect: float
    """Median of new connections to the neighbour, each with its first byte."""
    api: float
    """One question to the control API."""


@dataclass(frozen=True)
class Round:
    """The same twice, right after each other."""

    control: Sample
    attack: Sample


@dataclass(frozen=True)
class Resources:
    """What the switch holds."""

    memory: int
    """Resident bytes."""
    descriptors: int
    mapped: int = 0
    """Bytes of address space."""


@dataclass(frozen=True)
class Limits:
    """What a neighbour, and the switch, may suffer."""

    p50: float = 3.0
    p99: float = 10.0
    mean: float = 5.0
    rate: float = 0.45
    stall: float = 250_000.0
    """µs, of most rounds; a longer stall counts if it is also 10 times that of the control run."""
    worst: float = 1_500_000.0
    """µs; a stall that counts in any round."""
    connect: float = 20.0
    api: float = 2_000_000.0
    """µs."""
    memory: int = 96 * MIB
    """Growth during the attack, the attacker's guest memory included."""
    descriptors: int = 1024
    """Growth during the attack."""
    mapped: int = 2 << 40
    """Growth of the address space during the attack, of which there are 128 TiB for all guests."""
    log: int = 256 << 10
    """Bytes that the switch may log about it."""
    slack: float = 1.0
    """Factor on all ratios and times: above 1 for short runs on busy machines."""


BACK_MEMORY = 32 * MIB
BACK_DESCRIPTORS = 8
"""What the switch may keep afterwards: an allocator's caches, the helpers' descriptors."""


@dataclass(frozen=True)
class Played:
    """One case, measured."""

    rounds: list[Round]
    before: Resources
    during: Resources
    """The most that was seen."""
    after: Resources
    log: int
    """Bytes."""
    steps: int = 0
    """What the attacker did, in its own units."""
    broken: list[str] = field(default_factory=list)
    """What did not even get through: a neighbour that was cut off, a switch that ended."""
    unplayed: str = ""
    """Why the attacker did not get to attack."""


@dataclass(frozen=True)
class Verdict:
    """One case, judged."""

    p50: float
    p99: float
    mean: float
    stall: float
    rate: float
    connect: float
    api: float
    faults: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is over its limit."""
        return not self.faults


def _median_ratio(rounds: list[Round], of: Callable[[Sample], float]) -> float:
    return statistics.median(of(one.attack) / max(of(one.control), 1e-9) for one in rounds)


def worse_rates(one: Round) -> tuple[float, float]:
    """Attack and control of the direction that lost more."""
    pairs = zip(one.attack.rates, one.control.rates, strict=True)
    return min(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-9))


def _worst_rate(one: Round) -> float:
    attack, control = worse_rates(one)
    return attack / max(control, 1e-9)


def judge(played: Played, limits: Limits) -> Verdict:
    """Compares with the limits; each fault says value and limit."""
    rounds, slack = played.rounds, limits.slack
    p50 = _median_ratio(rounds, lambda sample: sample.p50) if rounds else 0.0
    p99 = _median_ratio(rounds, lambda sample: sample.p99) if rounds else 0.0
    mean = _median_ratio(rounds, lambda sample: sample.mean) if rounds else 0.0
    connect = _median_ratio(rounds, lambda sample: sample.connect) if rounds else 0.0
    rate = statistics.median(map(_worst_rate, rounds)) if rounds else 1.0
    stall = statistics.median(one.attack.stall for one in rounds) if rounds else 0.0
    usual = statistics.median(one.control.stall for one in rounds) if rounds else 0.0
    api = max((one.attack.api for one in rounds), default=0.0)
    faults = list(played.broken)
    if p50 > limits.p50 * slack:
        faults.append(f"ping p50 {p50:.1f} > {limits.p50 * slack:g} x control")
    if p99 > limits.p99 * slack:
        faults.append(f"ping p99 {p99:.1f} > {limits.p99 * slack:g} x control")
    if mean > limits.mean * slack:
        faults.append(f"ping mean {mean:.1f} > {limits.mean * slack:g} x control")
    if rate < limits.rate / slack:
        faults.append(f"bulk {rate:.2f} < {limits.rate / slack:.2g} of control")
    if stall > max(limits.stall, 10 * usual) * slack:
        faults.append(f"stall {stall / 1000:.0f} ms; control {usual / 1000:.0f} ms")
    elif (worst := max((one.attack.stall for one in rounds), default=0.0)) > limits.worst * slack:
        faults.append(f"stall {worst / 1000:.0f} ms in one round")
    if connect > limits.connect * slack:
        faults.append(f"connect {connect:.1f} > {limits.connect * slack:g} x control")
    if api > limits.api * slack:
        faults.append(f"control API answers in {api / 1e6:.1f} s")
    return Verdict(p50, p99, mean, stall, rate, connect, api, faults + _held(played, limits))


def _held(played: Played, limits: Limits) -> list[str]:
    """Faults of what the switch holds during the attack and afterwards."""
    before, during, after = played.before, played.during, played.after
    faults = []
    if during.memory - before.memory > limits.memory:
        faults.append(f"memory +{(during.memory - before.memory) // MIB} MiB")
    if during.descriptors - before.descriptors > limits.descriptors:
        faults.append(f"descriptors +{during.descriptors - before.descriptors}")
    if during.mapped - before.mapped > limits.mapped:
        faults.append(f"address space +{(during.mapped - before.mapped) >> 40} TiB")
    if after.memory - before.memory > BACK_MEMORY:
        faults.append(f"memory afterwards +{(after.memory - before.memory) // MIB} MiB")
    if after.descriptors - before.descriptors > BACK_DESCRIPTORS:
        faults.append(f"descriptors afterwards +{after.descriptors - before.descriptors}")
    if played.log > limits.log:
        faults.append(f"log {played.log >> 10} KiB")
    return faults

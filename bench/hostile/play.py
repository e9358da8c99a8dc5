"""Plays one case: control and attack in rounds, then the wait for what the switch gives back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.agents import AgentError
from bench.devices import DeviceError
from bench.hostile.arena import LOST, Arena, ArenaError, Times
from bench.hostile.attackers import BY, UnplayedError, busy_loops
from bench.hostile.cases import Case
from bench.hostile.judge import (
    BACK_DESCRIPTORS,
    BACK_MEMORY,
    Played,
    Resources,
    Round,
    Sample,
)

__all__ = ["Length", "Player"]

BACK = 4.0
"""Seconds within which the switch gives back what the attack took."""


@dataclass(frozen=True)
class Length:
    """How much is measured of a case."""

    rounds: int
    times: Times


class Player:
    """Plays cases on one switch, and on a new one after a case that hurt it."""

    def __init__(self, make: Callable[[], Arena], hostile: Path, length: Length) -> None:
        self._make = make
        self._hostile = hostile
        self._length = length
        self._arena: Arena | None = None

    def close(self) -> None:
        """Ends the switch."""
        if self._arena:
            self._arena.__exit__()
        self._arena = None

    def play(self, case: Case) -> Played:
        """Measures one case."""
        try:
            arena = self._arena = self._arena or self._make()
            before, log = arena.resources(), arena.log_size()
        except (ArenaError, AgentError, DeviceError) as error:
            self.close()
            nothing = Resources(0, 0)
            return Played([], nothing, nothing, nothing, log=0, unplayed=f"no switch: {error}")
        tally = _Tally(before)
        try:
            for _ in range(self._length.rounds):
                self._round(arena, case, tally)
            after = _given_back(arena, before)
        except (ArenaError, UnplayedError) as error:
            where = tally.broken if isinstance(error, ArenaError) else tally.unplayed
            where.append(str(error))
            after = before
        logged = arena.log_size() - log
        played = Played(
            tally.rounds,
            before,
            tally.most,
            after,
            logged,
            tally.steps,
            tally.broken,
            " ".join(tally.unplayed),
        )
        if tally.broken or tally.unplayed or not _is_back(after, before):
            self.close()
        return played

    def _round(self, arena: Arena, case: Case, tally: "_Tally") -> None:
        times = self._length.times
        with BY[case.by](self._hostile, arena, case.attack or case.name) as attack:
            before, begin = attack.processor_time(), time.monotonic()
            try:
                sample = arena.sample(times)
            except ArenaError:
                tally.rounds.append(Round(arena.usual, _lost(arena.usual)))
                raise
            finally:
                tally.note(arena)
            share = (attack.processor_time() - before) / (time.monotonic() - begin)
        tally.steps += attack.steps
        with busy_loops(share):
            control = arena.sample(times)
        tally.rounds.append(Round(control, sample))


class _Tally:
    """What was seen so far."""

    def __init__(self, before: Resources) -> None:
        self.rounds: list[Round] = []
        self.most = before
        self.steps = 0
        self.broken: list[str] = []
        self.unplayed: list[str] = []

    def note(self, arena: Arena) -> None:
        now = arena.resources()
        self.most = Resources(
            max(self.most.memory, now.memory),
            max(self.most.descriptors, now.descriptors),
            max(self.most.mapped, now.mapped),
        )


def _lost(control: Sample) -> Sample:
    """A neighbour that did not get through."""
    rates = tuple(0.0 for _ in control.rates)
    return Sample(LOST, LOST, LOST, LOST, rates, connect=LOST, api=LOST)


def _is_back(after: Resources, before: Resources) -> bool:
    return (
        after.memory - before.memory <= BACK_MEMORY
        and after.descriptors - before.descriptors <= BACK_DESCRIPTORS
    )


def _given_back(arena: Arena, before: Resources) -> Resources:
    """What the switch holds once it has given back what it can, or after a deadline."""
    deadline = time.monotonic() + BACK
    while not _is_back(after := arena.resources(), before) and time.monotonic() < deadline:
        time.sleep(0.05)
    return after

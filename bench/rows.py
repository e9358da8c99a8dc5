"""Measures contenders alternately, in rounds; computes medians, spread and ratios.

A ratio is the median of the ratios within each round, so that slow changes (another program on the
machine, a lower processor clock) do not affect it.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from bench.agents import AgentError
from bench.devices import DeviceError

__all__ = ["Row", "Spread", "alternate"]

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> "Spread":
        """The spread of one or more samples."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(statistics.median(samples), low, high)


@dataclass
class Row:
    """One figure: samples of each contender, round by round."""

    name: str
    unit: str
    samples: dict[str, list[float]]
    command: str
    failures: dict[str, str] = field(default_factory=dict)
    is_less_better: bool = False
    compares: bool = True

    def spread(self, contender: str) -> Spread | None:
        """Median and quartiles, unless the contender failed."""
        samples = self.samples.get(contender)
        return Spread.of(samples) if samples else None

    def ratio(self, contender: str, to: str) -> Spread | None:
        """The results of a contender divided by those of `to`, round by round."""
        if not self.compares:
            return None
        pairs = zip(self.samples.get(contender, []), self.samples.get(to, []), strict=False)
        ratios = [ours / theirs for ours, theirs in pairs if theirs > 0]
        return Spread.of(ratios) if ratios else None


def alternate(
    contenders: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    broken: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, list[T]], dict[str, str]]:
    """Measures every contender in every round, after a round that does not count.

    A contender that fails is left out of this figure, and `broken` is called. Returns samples and failures.
    """
    samples: dict[str, list[T]] = {name: [] for name in contenders}
    failures: dict[str, str] = {}
    for number in range(rounds + 1):
        for name, measure in contenders.items():
            if name in failures:
                continue
            try:
                sample = measure()
            except (AgentError, DeviceError, OSError) as error:
                failures[name] = str(error)
                samples[name].clear()
                broken(name)
                continue
            if number > 0:
                samples[name].append(sample)
    return samples, failures

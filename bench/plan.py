"""How long and how often to measure."""

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """The same for all figures of a run."""

    rounds: int
    seconds: float
    quick: bool

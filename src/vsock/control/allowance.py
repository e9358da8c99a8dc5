"""How many lines may be told of what others cause: a burst, and then one in a second. Pure."""

from typing import Final

__all__ = ["Allowance"]

_MOST_LINES: Final = 50
_LINES_PER_SECOND: Final = 1.0
"""So many lines at once, and so many on average."""


class Allowance:
    """Lines that one source may add to a log or a terminal: guests cause some of them."""

    def __init__(self) -> None:
        self._lines = float(_MOST_LINES)
        self._at = 0.0
        self._left_out = 0

    def take(self, now: float) -> int | None:
        """Take a line, at a time of a steady clock; returns how many were left out before it, None if it is to be left out."""
        self._lines = min(_MOST_LINES, self._lines + (now - self._at) * _LINES_PER_SECOND)
        self._at = now
        if self._lines < 1:
            self._left_out += 1
            return None
        self._lines -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out

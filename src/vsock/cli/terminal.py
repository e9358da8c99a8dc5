"""A terminal as a stream of keys, for a shell at the other end that does the rest."""

import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["ESCAPE", "raw"]

ESCAPE: Final = b"\x1d"
"""Ctrl-], as with telnet(1): the one key that is not passed on, and ends the session."""


@contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Pass every key on as it is pressed, Ctrl-C too, and show none; as it was after the block.

    Raises:
        termios.error: the descriptor `terminal` is no terminal.
    """
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)

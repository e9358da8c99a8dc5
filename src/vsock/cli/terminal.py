"""A terminal in raw mode, for a shell at the other end."""

import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["ESCAPE", "raw"]

ESCAPE: Final = b"\x1d"
"""Ctrl-], as with telnet(1): this key ends the connection instead of being sent."""


@contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Put the terminal into raw mode: every key is read at once, also Ctrl-C. Restored after the block.

    Raises:
        termios.error: the descriptor `terminal` is no terminal.
    """
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)

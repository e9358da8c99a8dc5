"""Commands that go on in the background: in a child, which leaves the terminal when it has come so far."""

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Final

__all__ = ["in_background"]

_LEFT: Final = b"left"


def in_background(work: Callable[[Callable[[], None]], int]) -> int:
    """Run `work` in a child, and return when it calls its argument, or has ended.

    Both processes return from here, the child with what `work` returns.

    Returns:
        The exit code: 0 if the child goes on; below 0 if a signal has ended it. It has said why it failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # Nothing that a caller left open, such as a lock, is to stay open in the background.
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        return work(partial(_leave, writer))
    os.close(writer)
    try:
        if os.read(reader, len(_LEFT)) == _LEFT:
            return 0
    except BaseException:
        os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _leave(writer: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)
    os.write(writer, _LEFT)
    os.close(writer)

"""Waiting, so that blocking and asynchronous code share everything else.

A function that may have to wait is a generator of `Steps`: it yields each `Wait`, and is sent
whether what it waits for came in time. `run` goes through the steps and blocks this thread (or this
greenlet); `vsock.aio.run` does so in an event loop.
"""

import select
import time
from collections.abc import Generator
from typing import Final, NamedTuple, TypeVar

from vsock._system.green import Base, is_patched
from vsock._system.green import wait as wait_green

SIGNAL_SECONDS: Final = 0.5
"""Seconds by which a signal may be delayed. A signal that arrives after Python last checked for signals and before
the thread sleeps does not wake the thread, so a wait of which the end is not known is made of waits of this length."""

_T = TypeVar("_T")


class Wait(NamedTuple):
    """A request to wait.

    Attributes:
        sock: the socket to wait for; None: only let time pass.
        events: ``POLLIN`` or ``POLLOUT``, or both.
        deadline: when to give up, on the clock `time.monotonic`; None: never.
    """

    sock: Base | None
    events: int
    deadline: float | None


Steps = Generator[Wait, bool, _T]
"""A call in steps: yields what to wait for, is sent whether it came in time, returns the call's result."""


def run(steps: Steps[_T]) -> _T:
    """Go through `steps`, blocking where they wait, and return their result."""
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(_wait(wanted))
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        # An exception while we waited, such as KeyboardInterrupt: the steps clean up behind themselves.
        steps.close()


def wait(sock: Base, events: int, deadline: float | None) -> bool:
    """Wait until one of `events` is on `sock`; False if `deadline` passes first."""
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if is_patched():
        return wait_green(sock.fileno(), events, left)
    poller = select.poll()
    poller.register(sock, events)
    return bool(poller.poll(None if left is None else left * 1000))


def _wait(wanted: Wait) -> bool:
    sock, events, deadline = wanted
    if sock is not None:
        return wait(sock, events, deadline)
    assert deadline is not None, "a pause has an end"
    time.sleep(max(0.0, deadline - time.monotonic()))
    return False

"""A socket has one state for all: threads, a dup, a fork, another program (A1, A3)."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLAYS = Path(__file__).parent / "plays.py"
COUNT = "60"
SITUATIONS = [
    *("select-and-getpeername", "select-and-peek", "repr", "getsockname", "SO_ERROR"),
    *("two-threads", "dup", "fork-parent-first", "fork-at-once", "refused-fork"),
]
EVERY = pytest.mark.parametrize("situation", SITUATIONS)


@EVERY
def test_two_who_look_at_a_connect_see_the_same_and_lose_nothing(switch, situation):
    """With `vsock.socket`: the second caller must not take data for the outcome."""
    command = [sys.executable, PLAYS, "api", situation, COUNT]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (f"{COUNT} played\n", "")


@EVERY
def test_so_do_two_who_know_only_the_kernels_sockets(
    switch: object, run_preloaded: Callable[..., str], situation: str
) -> None:
    """The same under `vsock run`."""
    played = run_preloaded(sys.executable, str(PLAYS), "plain", situation, COUNT, timeout=120)
    assert played == f"{COUNT} played\n"

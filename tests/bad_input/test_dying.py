"""Programs that end in the middle of a conversation: the switch keeps nothing of them, and their peers notice."""

import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.bad_input.conversations import CALL, CONVERSATIONS, PORT
from tests.bad_input.lab import DEADLINE, Lab

import vsock

EVERY = pytest.mark.parametrize("name", CONVERSATIONS)


class Callers:
    """Connections of the guest to a program; when the program ends, each must end."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._sockets: list[socket.socket] = []

    def call(self) -> None:
        """Connect, and send something."""
        caller = self._lab.guest.create_connection((2, PORT), DEADLINE)
        caller.settimeout(DEADLINE)
        self._sockets.append(caller)
        caller.sendall(bytes(100_000))

    def all_hear_of_it(self) -> None:
        """Read each connection to its end, then close it."""
        for caller in self._sockets:
            with caller:
                while caller.recv(1 << 16):
                    pass


def close(conversation: Iterator[str]) -> None:
    """End a conversation at its current step."""
    if isinstance(conversation, Generator):
        conversation.close()


def is_free(lab: Lab) -> None:
    """Whether the port is free, for all types."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with vsock.socket(kind) as sock:
            sock.bind((vsock.CID_ANY, PORT))


@EVERY
def test_program_that_closes_all_after_any_step(lab: Lab, name: str) -> None:
    """It closes its sockets after one more step each time."""
    before = lab.holdings()
    for steps in count(1):
        callers = Callers(lab)
        conversation = CONVERSATIONS[name](lab.directory)
        done = 0
        for step in conversation:
            if step == CALL:
                callers.call()
            done += 1
            if done == steps:
                break
        lab.wait_until(f"it has something, {step!r}", lambda: lab.holdings() != before)
        close(conversation)
        callers.all_hear_of_it()
        lab.wait_until(f"all is given back after step {done}", lambda: lab.holdings() == before)
        is_free(lab)
        if done < steps:
            return


@contextlib.contextmanager
def child(directory: Path, name: str) -> "Iterator[subprocess.Popen[str]]":
    """A process that runs the conversation."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.bad_input.conversations", str(directory), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate(timeout=DEADLINE)


@EVERY
def test_program_that_is_killed_at_its_last_step(lab: Lab, name: str) -> None:
    """SIGKILL with all sockets open, and once more in the middle of the conversation."""
    before = lab.holdings()
    total = sum(1 for _ in _rehearse(lab, name))
    lab.wait_until("the rehearsal is over", lambda: lab.holdings() == before)
    for steps in {total, total // 2} - {0}:
        callers = Callers(lab)
        with child(lab.directory, name) as program:
            assert program.stdin
            assert program.stdout
            for done in range(1, steps + 1):
                step = program.stdout.readline().strip()
                if step == CALL:
                    callers.call()
                if done < steps:
                    program.stdin.write("\n")
                    program.stdin.flush()
            lab.wait_until(f"it has something, {step!r}", lambda: lab.holdings() != before)
        callers.all_hear_of_it()
        lab.wait_until(f"all is given back after {step!r}", lambda: lab.holdings() == before)
        is_free(lab)


def _rehearse(lab: Lab, name: str) -> Iterator[str]:
    callers = Callers(lab)
    for step in CONVERSATIONS[name](lab.directory):
        if step == CALL:
            callers.call()
        yield step
    callers.all_hear_of_it()


def test_many_programs_killed_at_once(lab: Lab) -> None:
    """One process with a hundred sockets in all states."""
    before = lab.holdings()
    names = [
        name
        for name in CONVERSATIONS
        if name in ("talking", "hybrid", "connecting_without_waiting")
    ]
    code = (
        "import sys; from pathlib import Path; from tests.bad_input.conversations import CONVERSATIONS\n"
        "kept = []\n"
        f"for name in {names} * 12:\n"
        "    steps = CONVERSATIONS[name](Path(sys.argv[1]))\n"
        "    for _ in range(1 + len(kept) % 4):\n"
        "        next(steps)\n"
        "    kept.append(steps)\n"
        "print('there', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lab.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as program:
        assert program.stdout
        assert program.stdout.readline() == "there\n"
        assert lab.holdings().descriptors >= before.descriptors + 36
        program.kill()
    lab.wait_until("all is given back", lambda: lab.holdings() == before)


def test_programs_that_come_and_go_in_any_order(lab: Lab) -> None:
    """A hundred conversations at a time; each is continued or ended at random."""
    print("seed", seed := 53)
    chance = random.Random(seed)
    before = lab.holdings()
    names = ["asking", "connecting_without_waiting", "talking", "not_listening", "hybrid"]
    under_way: list[Iterator[str]] = []
    for _ in range(1000):
        if len(under_way) < 100 and chance.random() < 0.5:
            under_way.append(CONVERSATIONS[chance.choice(names)](lab.directory))
            continue
        steps = under_way.pop(chance.randrange(len(under_way))) if under_way else iter(())
        if chance.random() < 0.8 and next(steps, None):
            under_way.append(steps)
        else:
            close(steps)
    assert len(under_way) > 20
    for steps in under_way:
        close(steps)
    lab.wait_until("all is given back", lambda: lab.holdings() == before)

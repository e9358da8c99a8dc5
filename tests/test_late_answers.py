"""A switch that is stopped for a while: answers that arrived meanwhile count, although timers have expired."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bad_input.lab import DEADLINE, SILENT, Lab
from tests.bad_input.raw import dial, name, reply

from vsock._client import Op, Request
from vsock._system.waiting import wait

GUEST = """
import sys, vsock
with vsock.Guest(sys.argv[1]) as guest, guest.create_server(5000) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    print("accepted", flush=True)
    connection.recv(1)
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A switch in a process of its own."""
    with Lab() as lab:
        yield lab


def stop(lab: Lab, pid: int) -> None:
    """Stop a process, all of its threads."""
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").iterdir())

    def are_stopped() -> bool:
        return all(
            (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads
        )

    lab.wait_until("it is stopped", are_stopped)


def test_answer_that_came_in_time_is_found_behind_the_deadline(lab: Lab) -> None:
    """The guest accepts in time, and the switch reads the answer after the deadline."""
    with subprocess.Popen(
        [sys.executable, "-c", GUEST, str(lab.directory / "guests/beta.sock")],
        stdout=subprocess.PIPE,
        text=True,
    ) as guest:
        assert guest.stdout
        assert guest.stdout.readline() == "ready\n"
        stop(lab, guest.pid)
        try:
            with dial(lab, "stream") as client:
                seconds = 5
                deadline = time.monotonic() + seconds
                client.sendall(Request(Op.CONNECT, SILENT, 5000, seconds * 1000).encode())
                lab.wait_until("it is asked", lambda: lab.holdings().flows == 1)
                stop(lab, lab.process.pid)
                os.kill(guest.pid, signal.SIGCONT)
                assert guest.stdout.readline() == "accepted\n"
                assert not wait(client, select.POLLIN, deadline + 0.1)
                os.kill(lab.process.pid, signal.SIGCONT)
                client.settimeout(DEADLINE)
                assert name(reply(client)) == "OK"
        finally:
            os.kill(lab.process.pid, signal.SIGCONT)
            guest.kill()

"""`vsock status`, `vsock clock`, `vsock journal`: what a guest says of itself, and what one may say that lies."""

import json
import os
import platform

import pytest
from tests.ssh.server import SshServer

from vsock.cli.main import main
from vsock.guest import Guest
from vsock.ssh.identity import Identity
from vsock.switch import Switch


@pytest.fixture
def key() -> str:
    """This user's public key."""
    return Identity.of_user().public_key()


def test_state_is_that_of_the_machine(
    guest: Guest, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guest is a process of this machine, so its kernel and its clock are known."""
    with SshServer(guest, key):
        assert main(["status", "alpha", "--json"]) == 0
        (state,) = json.loads(capsys.readouterr().out)
        assert (state["name"], state["kernel"]) == ("alpha", platform.release())
        assert state["processors"] == os.cpu_count()
        assert state["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < state["available"] <= state["memory"]
        assert state["uptime"] > 0
        assert abs(state["clock"]["offset"]) <= state["clock"]["precision"]
        assert main(["status", "alpha"]) == 0
        heading, row = capsys.readouterr().out.splitlines()[1:]
        assert heading.split() == [
            *("name", "state", "up", "load", "memory", "free", "clock", "kernel", "system"),
        ]
        assert row.split()[0] == "alpha"
        assert main(["clock", "alpha"]) == 0
        assert capsys.readouterr().out == "the clock of alpha is right\n"


def test_guest_that_does_not_answer_stops_no_other(
    switch: Switch, guest: Guest, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has those that do; the exit code says that it is not all."""
    with SshServer(guest, key):
        assert main(["status", "nobody", "alpha"]) == 1
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()[2:]] == ["alpha"]
    assert said.err.startswith("vsock: nobody: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        ("yes", "alpha gave a strange answer: 'y"),
        ("printf 'uptime=nan\\nload=1e999\\nmemory=-1\\n'; exit", "alpha gave a strange answer"),
        (
            "printf 'system=\\033[2J\\nkernel=\\n\\n=\\n'; head -c 100 /dev/urandom",
            "strange answer",
        ),
    ],
)
def test_lies_are_one_printable_line(
    guest: Guest, key: str, capsys: pytest.CaptureFixture[str], instead: str, reason: str
) -> None:
    """No number of a guest is used unchecked, and nothing of it reaches the terminal as it is."""
    with SshServer(guest, key, instead=instead):
        assert main(["status", "alpha"]) == 1
    said = capsys.readouterr()
    assert reason in said.err
    assert said.err.count("\n") == 1
    assert said.err.rstrip("\n").isprintable()

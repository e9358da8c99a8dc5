"""`vsock guest run`: a command as a guest of the switch."""

import signal
import subprocess
import sys

import pytest

import vsock
from vsock.cli.main import main
from vsock.guest import Guest
from vsock.switch import Switch

PROGRAM = "import sys, vsock; print(vsock.get_local_cid(), flush=True); sys.exit(int(sys.argv[1]))"
SERVER = """
import vsock
with vsock.create_server(5000) as listener:
    print("listening", flush=True)
    connection, peer = listener.accept()
    connection.sendall(str(peer.cid).encode())
    connection.recv(1)
"""


def guest_run(*arguments: str) -> "subprocess.Popen[str]":
    """The command as users call it."""
    return subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "guest", "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_command_has_the_guests_cid_and_gives_its_exit_code(switch: Switch) -> None:
    """By name or CID; what looks like an option of ours is the command's."""
    for who, status in (("beta", 7), ("4", 0)):
        with guest_run(who, sys.executable, "-c", PROGRAM, str(status)) as process:
            out, err = process.communicate(timeout=30)
            assert (out, err, process.returncode) == ("4\n", "", status)


def test_command_serves_the_host_and_ends_by_our_signal(switch: Switch) -> None:
    """SIGTERM is passed on, and the guest leaves the switch."""
    with guest_run("beta", sys.executable, "-c", SERVER) as process:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        with vsock.create_connection("beta:5000") as connection:
            assert connection.recv(10) == b"2"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
            assert connection.recv(10) == b""
    assert switch.guest("beta").connections == 0


def test_guest_that_runs_already_is_refused(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, as are a guest and a command that do not exist."""
    assert main(["guest", "run", "alpha", "true"]) == 1
    assert capsys.readouterr().err.startswith("vsock: guest alpha runs already")
    assert main(["guest", "run", "nobody", "true"]) == 1
    assert "guests: alpha, beta, gamma" in capsys.readouterr().err


def test_command_that_is_not_there_is_127(switch: Switch) -> None:
    """As a shell says it."""
    with guest_run("beta", "no-such-program") as process:
        _, err = process.communicate(timeout=30)
        assert (err, process.returncode) == (
            "vsock guest run: no-such-program: No such file or directory\n",
            127,
        )

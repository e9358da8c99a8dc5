"""`vsock guest run`: a command as a guest of the switch."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsock
from vsock.cli.guest_run import Signals
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
    """By name or CID; options after the command are the command's."""
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


def test_signal_before_the_command_runs_leaves_nothing_behind(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's files are removed, also if the signal came while the device did not answer."""
    temporary = switch.runtime_dir / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    path = switch.runtime_dir / "silent.sock"
    switch.add_guest("delta", 6, socket=path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as device:
        device.settimeout(30)
        device.bind(str(path))
        device.listen()
        with guest_run("delta", "true") as process:
            connection, _ = device.accept()
            with connection:
                assert list(temporary.iterdir())
                process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 1
    assert not list(temporary.iterdir())


@pytest.fixture
def signals() -> Iterator[Signals]:
    """`Signals` in this process, with no signal ignored (N2)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in numbers]
    yield Signals()
    for number, handler in before:
        signal.signal(number, handler)


def test_signal_while_the_command_is_started_is_passed_on(signals: Signals) -> None:
    """A signal before `Popen` returns is kept: it neither ends only the parent nor is lost."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert signals.kept == [signal.SIGINT, signal.SIGTERM]
    with subprocess.Popen(["sleep", "60"]) as child:
        signals.give_to(child)
        assert child.wait(30) == -signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # after the test


def test_ignored_signal_stays_ignored_in_the_command(switch: Switch) -> None:
    """As `nohup` requires."""
    command = f"trap '' HUP; exec {sys.executable} -m vsock.cli guest run beta grep SigIgn /proc/self/status"
    shown = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    assert int(shown.split()[1], 16) & 1 << (signal.SIGHUP - 1)


def test_guest_that_runs_already_is_refused(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line, also for a guest or a command that does not exist."""
    assert main(["guest", "run", "alpha", "true"]) == 1
    assert capsys.readouterr().err.startswith("vsock: guest alpha runs already")
    assert main(["guest", "run", "nobody", "true"]) == 1
    assert "guests: alpha, beta, gamma" in capsys.readouterr().err


def test_command_that_is_not_there_is_127(switch: Switch) -> None:
    """The exit code of a shell."""
    with guest_run("beta", "no-such-program") as process:
        _, err = process.communicate(timeout=30)
        assert (err, process.returncode) == (
            "vsock guest run: no-such-program: No such file or directory\n",
            127,
        )


def test_switch_that_ends_ends_the_command_with_a_line(runtime_dir: Path) -> None:
    """N5: neither the command nor `vsock guest run` waits for ever."""
    with Switch({"beta": 4}, runtime_dir=runtime_dir, control=True):
        process = guest_run("beta", sys.executable, "-c", SERVER)
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err == (
        "vsock guest run: beta: the switch ended, or the guest was removed from it; COMMAND is ended\n"
    )


def test_guest_that_is_removed_ends_the_command_with_a_line(switch: Switch) -> None:
    """N5: a command that ignores SIGTERM is killed after a while."""
    with guest_run("beta", sys.executable, "-c", SERVER) as process:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        switch.remove_guest("beta")
        assert process.wait(30) == 1


def test_reconnecting_guest_comes_back_with_the_switch(runtime_dir: Path) -> None:
    """N5: its listener goes on under the next switch, and it prints what happens."""
    with Switch({"beta": 4}, runtime_dir=runtime_dir, control=True):
        process = guest_run("--reconnect", "beta", sys.executable, "-c", SERVER)
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "listening\n"
    assert process.stderr.readline().endswith("removed from it; waiting for it\n")
    with Switch({"beta": 44}, runtime_dir=runtime_dir, control=True):
        assert process.stderr.readline() == "vsock guest run: beta: back, with CID 44\n"
        with vsock.create_connection("beta:5000", 30) as connection:
            assert connection.recv(10) == b"2"
    process.terminate()
    process.communicate(timeout=30)


def test_three_at_once_are_one_guest_and_two_that_are_told(switch: Switch) -> None:
    """N12: the other two print that the guest runs already, and not what their device reported."""
    running = [guest_run("beta", sys.executable, "-c", SERVER) for _ in range(3)]
    said = []
    try:
        deadline = time.monotonic() + 60
        while sum(process.poll() is not None for process in running) < 2:
            assert time.monotonic() < deadline
            signal.sigtimedwait([], 0.01)
        said = [process.communicate()[1] for process in running if process.poll() is not None]
    finally:
        for process in running:
            process.terminate()
            process.communicate(timeout=30)
    assert said == ["vsock: guest beta runs already: one machine per guest\n"] * 2


def test_program_that_asks_the_kernel_is_told_that_there_is_no_vsock(switch: Switch) -> None:
    """N14: without `vsock run` the kernel's own AF_VSOCK, which is not the guest's, is not supported."""
    asked = "import socket; socket.socket(40, socket.SOCK_STREAM)"
    with guest_run("beta", sys.executable, "-c", asked) as process:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "Address family not supported" in err

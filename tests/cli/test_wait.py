"""`vsock wait`: what it waits for, and what it says is missing."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import asyncssh
import pytest
from tests.ssh.server import SshServer

from vsock.cli.main import main
from vsock.control.model import NOTIFY_PORT
from vsock.guest import Guest
from vsock.ssh.identity import Identity
from vsock.switch import Switch

SECONDS = 20

ADVICE = (
    "boot it with `vsock qemu-args alpha --notify`, "
    "or the credential vmm.notify_socket=vsock-stream:2:73239"
)


def say(guest: Guest, message: bytes) -> None:
    """Say a message as systemd does, until the switch has it."""
    with guest.create_connection((2, NOTIFY_PORT), timeout=SECONDS) as connection:
        connection.settimeout(SECONDS)
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


@pytest.fixture
def waiting(switch: Switch) -> Iterator["subprocess.Popen[str]"]:
    """`vsock wait alpha`, which has found that there is no VMM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "wait", "alpha", "--timeout", str(SECONDS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VSOCK_RUNTIME_DIR": str(switch.runtime_dir)},
    )
    assert process.stderr
    assert process.stderr.readline().startswith("alpha: no VMM is attached")
    yield process
    process.kill()
    process.communicate()


def test_wait_ends_when_the_guest_is_ready(
    switch: Switch, waiting: "subprocess.Popen[str]"
) -> None:
    """It sees the guest come, and is told; each state of the guest is a sign of life."""
    assert waiting.stderr
    with Guest(switch.socket_path("alpha")) as guest:
        line = waiting.stderr.readline()
        if "its VMM is attached" in line:  # seen before the driver was up
            line = waiting.stderr.readline()
        assert line.startswith("alpha: its driver is up, but it has not said")
        say(guest, b"STATUS=Starting.")
        say(guest, b"READY=1")
        out, err = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == 0
    assert re.fullmatch(r"alpha is ready after \S+s\n", out)
    assert err == ""


def test_guest_that_is_ready_is_not_waited_for(
    guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record is that of `vsock guest ls`, which calls it ready."""
    say(guest, b"READY=1\nSTATUS=Up.")
    assert main(["wait", "3", "--ready", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["ready"], record["status"]) == ("alpha", True, "Up.")
    assert main(["guest", "ls"]) == 0
    assert re.search(r"alpha +3 +ready ", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (
            b"",
            f"its driver is up, but it has not said that it is ready: {ADVICE}",
        ),
        (b"X_SYSTEMD_HOSTNAME=a", "not ready yet"),
        (b"STATUS=Starting \x1b[2J.", "not ready yet, it says 'Starting ?[2J.'"),
        (b"STOPPING=1\nSTATUS=", "not ready yet"),
    ],
)
def test_what_a_running_guest_lacks_is_said(
    guest: Guest, capsys: pytest.CaptureFixture[str], message: bytes, missing: str
) -> None:
    """The guest's own words are shown, and do nothing to the terminal."""
    if message:
        say(guest, message)
    assert main(["wait", "alpha", "--timeout", "0.05"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"vsock: alpha: {missing}"


@pytest.mark.usefixtures("switch")
def test_without_a_guest_there_is_nothing_to_wait_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A guest without a VMM may come; one that the switch does not know would never."""
    assert main(["wait", "beta", "--timeout", "0.05"]) == 1
    said = "vsock: beta: no VMM is attached: start one with `vsock qemu-args beta`"
    assert capsys.readouterr().err.splitlines()[-1] == said
    begun = time.monotonic()
    assert main(["wait", "delta"]) == 1
    assert time.monotonic() - begun < SECONDS
    assert "delta" in capsys.readouterr().err


def test_wait_for_a_port(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends when a program listens, whose first connection ends at once."""
    assert main(["wait", "alpha", "--port", "22", "--timeout", "0.05"]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("vsock: alpha: nothing listens on its port 22 (")
    )
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(main(["wait", "alpha", "--port", "22"])))
    thread.start()
    with guest.create_server(22) as server:
        server.settimeout(SECONDS)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            assert connection.recv(1) == b""
    thread.join(SECONDS)
    assert done == [0]
    assert capsys.readouterr().out.startswith("alpha listens on port 22 after ")


def test_wait_ends_when_sshd_lets_us_in(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that is not taken is no reason to wait: time does not change it."""
    assert main(["wait", "alpha", "--ssh", "--timeout", "0.2"]) == 1
    assert "alpha: nobody listens on port 22 of alpha" in capsys.readouterr().err
    with SshServer(guest, Identity.of_user().public_key()) as server:
        assert main(["wait", "alpha", "--ssh"]) == 0
        assert capsys.readouterr().out.startswith("alpha lets us in over ssh after ")
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with SshServer(guest, other, key=server.key):
        assert main(["wait", "alpha", "--ssh"]) == 1
    assert "sshd of alpha does not take the key" in capsys.readouterr().err


@pytest.mark.usefixtures("switch")
def test_wait_for_one_thing_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Which of the two it had waited for would not be clear."""
    assert main(["wait", "alpha", "--ready", "--port", "22"]) == 2
    assert "--ready, --port and --ssh exclude each other" in capsys.readouterr().err


def test_terminal_shows_what_the_guest_says(switch: Switch, guest: Guest) -> None:
    """In one line, which fits and is gone at the end."""
    say(guest, b"STATUS=Starting the one and only service. " + b"x" * 300)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", "wait", "alpha"],
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "VSOCK_RUNTIME_DIR": str(switch.runtime_dir), "COLUMNS": "60"},
        )
        os.close(theirs)
        shown = b""
        while b"Starting the one" not in shown:
            shown += terminal.read(4096)
        say(guest, b"READY=1")
        assert process.wait(SECONDS) == 0
        while b"\r\x1b[K" not in shown[-4:]:
            shown += terminal.read(4096)
    lines = re.split(rb"\r|\x1b\[K", shown)
    assert max(len(line.decode()) for line in lines) < 60
    assert b"\n" not in shown


def test_qemu_gets_the_credential_by_which_its_guest_is_heard(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if it is asked for: not every guest has systemd."""
    del switch
    assert main(["qemu-args", "alpha", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["qemu-args", "alpha", "--notify", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)[len(plain) :]
    value = f"io.systemd.credential:vmm.notify_socket=vsock-stream:2:{NOTIFY_PORT}"
    assert more == ["-smbios", f"type=11,value={value}"]

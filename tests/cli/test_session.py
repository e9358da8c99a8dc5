"""`vsock session`: a session that stays open. That commands run in it as they do without: test_exec.py."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.ssh.server import SshServer

from vsock.guest import Guest
from vsock.ssh.identity import Identity
from vsock.ssh.master.messages import GREETING, at, decode, sessions_dir
from vsock.switch import Switch

DEADLINE = 60
SILENT = b"vsock: the master of a session does not answer: is its process stopped?\n"


@pytest.fixture
def sshd(guest: Guest) -> Iterator[SshServer]:
    """An SSH server in alpha."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running


@pytest.fixture
def opened(sshd: SshServer) -> Iterator[SshServer]:
    """The server, with one session that is kept open."""
    done = vsock("session", "open", "alpha")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    yield sshd
    vsock("session", "close", "--all")


def vsock(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command."""
    command = [sys.executable, "-m", "vsock.cli", *words]
    return subprocess.run(command, input=given, capture_output=True, timeout=DEADLINE, check=False)


def sessions() -> list[dict[str, object]]:
    """What `vsock session ls` says."""
    listed: list[dict[str, object]] = json.loads(vsock("session", "ls", "--json").stdout)
    return listed


def logins(sshd: SshServer) -> int:
    """How many connections the server has had."""
    return len(sshd.connections)


def test_limits_are_kept(opened: SshServer) -> None:
    """Time and output, and the command is over then."""
    done = vsock("exec", "alpha", "--timeout", "0.5", "--", "sleep", "600")
    assert (done.returncode, done.stderr) == (
        124,
        b"vsock: alpha: COMMAND was ended after 0.5 s\n",
    )
    done = vsock("exec", "alpha", "--max-output", "5", "--", "sh", "-c", "echo 12345678; sleep 600")
    assert (done.returncode, done.stdout) == (255, b"12345")
    wait_until_nothing_runs()
    assert logins(opened) == 1


def test_client_that_is_killed_ends_its_command(opened: SshServer) -> None:
    """And the session goes on."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--"]
    with subprocess.Popen(
        [*command, "sh", "-c", "echo begun; sleep 600"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        assert sessions()[0]["running"] == 1
        assert sessions()[0]["closes_in"] is None
        process.kill()
    wait_until_nothing_runs()
    assert vsock("exec", "alpha", "--", "echo", "on").stdout == b"on\n"
    assert logins(opened) == 1


def test_reader_that_is_slow_gets_all(opened: SshServer) -> None:
    """The command has ended long before its output was read."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--"]
    with subprocess.Popen(
        [*command, "head", "-c", "1000000", "/dev/zero"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        first = os.read(process.stdout.fileno(), 1)
        vsock("exec", "alpha", "--", "true")
        assert len(first + process.stdout.read()) == 1_000_000
        assert process.wait(DEADLINE) == 0
    assert logins(opened) == 1


def test_session_is_for_the_same_user_port_and_guest(opened: SshServer) -> None:
    """Others have logins of their own."""
    assert vsock("exec", "-u", "somebody", "alpha", "--", "echo", "other").stdout == b"other\n"
    assert logins(opened) == 2


def test_command_too_long_for_a_message_has_its_own_session(opened: SshServer) -> None:
    """The message has a limit, the command of sshd another."""
    done = vsock("exec", "alpha", "--", "sh", "-c", f"echo {'x' * 60000} {'y' * 60000}|wc -c")
    assert (done.stdout, logins(opened)) == (b"120002\n", 1)
    long = ["z" * 60000] * 4
    done = vsock("exec", "alpha", "--", "true", *long)
    assert logins(opened) == 2


def test_guest_that_goes_away_ends_its_session(opened: SshServer, switch: Switch) -> None:
    """The command that ran, and the master."""
    assert logins(opened) == 1
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--", "sh", "-c"]
    with subprocess.Popen(
        [*command, "echo begun; sleep 60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        switch.remove_guest("alpha")
        _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (
        255,
        b"vsock: alpha: the session ended before COMMAND did\n",
    )
    wait_until_there_is_none()


def test_session_closes_when_it_is_idle(sshd: SshServer) -> None:
    """After the last command."""
    assert vsock("session", "open", "alpha", "--idle", "0.2").returncode == 0
    wait_until_there_is_none()
    assert logins(sshd) == 1


def test_session_is_closed_with_what_runs_in_it(opened: SshServer) -> None:
    """And closing it again is an error."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--", "sh", "-c"]
    with subprocess.Popen(
        [*command, "echo begun; sleep 60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        assert vsock("session", "close", "alpha").returncode == 0
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 255
    assert err == b"vsock: alpha: the session ended before COMMAND did\n"
    wait_until_there_is_none()
    done = vsock("session", "close", "alpha")
    assert (done.returncode, done.stderr) == (1, b"vsock: no session with alpha\n")
    assert logins(opened) == 1


def test_opening_again_changes_nothing(opened: SshServer) -> None:
    """Also with a master in the foreground, which says so."""
    assert vsock("session", "open", "alpha").returncode == 0
    done = vsock("session", "open", "alpha", "--foreground")
    assert (done.returncode, done.stderr.count(b"\n")) == (255, 1)
    assert (len(sessions()), logins(opened)) == (1, 1)


def test_socket_of_a_master_that_was_killed_is_taken(sshd: SshServer) -> None:
    """Commands do without; the next master has its place."""
    command = [sys.executable, "-m", "vsock.cli", "session", "open", "alpha", "--foreground"]
    with subprocess.Popen(command) as process:
        wait_for_sessions(1)
        process.kill()
    assert len(list(sessions_dir().iterdir())) == 1
    assert vsock("exec", "alpha", "--", "echo", "on").stdout == b"on\n"
    assert vsock("session", "open", "alpha").returncode == 0
    assert (len(sessions()), logins(sshd)) == (1, 3)
    assert vsock("session", "close", "alpha").returncode == 0


@pytest.mark.usefixtures("guest")
def test_failure_to_open_is_one_line() -> None:
    """The same as that of exec."""
    done = vsock("session", "open", "alpha")
    assert (done.returncode, done.stderr.count(b"\n")) == (255, 1)
    assert b"nobody listens on port 22 of alpha" in done.stderr
    assert sessions() == []


@pytest.mark.parametrize(
    "packet",
    [b"", b"[]", b"\xff", b"{}", b'{"ask": "run"}', b'{"ask": "run", "line": 1, "terminal": null}'],
)
def test_client_that_says_nonsense_is_hung_up_on(opened: SshServer, packet: bytes) -> None:
    """And the master serves others."""
    assert logins(opened) == 1
    (name,) = (one.name for one in sessions_dir().iterdir())
    directory = os.open(sessions_dir(), os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(DEADLINE)
        client.connect(str(at(directory, name)))
        os.close(directory)
        assert decode(client.recv(1000)) == GREETING
        client.send(packet)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000) == b""
    assert vsock("exec", "alpha", "--", "echo", "on").stdout == b"on\n"
    assert logins(opened) == 1


def test_time_limit_counts_also_while_nobody_reads(opened: SshServer) -> None:
    """The pipe is full."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--timeout", "1", "--"]
    with subprocess.Popen(
        [*command, "head", "-c", "10000000", "/dev/zero"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.wait(DEADLINE) == 124
    wait_until_nothing_runs()
    assert logins(opened) == 1


def test_second_signal_ends_it_whatever_the_command_does(opened: SshServer) -> None:
    """The first one is the command's, which ignores it here."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--", "sh", "-c"]
    with subprocess.Popen(
        [*command, "trap '' INT; echo begun; while sleep 0.1; do :; done"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + DEADLINE
        while process.poll() is None:  # two that come at once may be one
            assert time.monotonic() < deadline
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        assert process.returncode == 255
    wait_until_nothing_runs()
    assert logins(opened) == 1


def test_command_that_sshd_declines_has_a_login_of_its_own(guest: Guest) -> None:
    """A connection has no more than MaxSessions of them."""
    with SshServer(guest, Identity.of_user().public_key(), sessions=2) as sshd:
        assert vsock("session", "open", "alpha").returncode == 0
        for number in range(4):
            done = vsock("exec", "alpha", "--", "cat", given=b"data\n")
            assert (done.returncode, done.stdout, done.stderr) == (0, b"data\n", b"")
            assert logins(sshd) == max(1, number)
        assert vsock("session", "close", "alpha").returncode == 0


def test_sessions_opened_at_once_are_one(sshd: SshServer) -> None:
    """And closing one is over when the command is."""
    command = [sys.executable, "-m", "vsock.cli", "session", "open", "alpha"]
    with subprocess.Popen(command) as first, subprocess.Popen(command) as second:
        assert (first.wait(DEADLINE), second.wait(DEADLINE)) == (0, 0)
    assert len(sessions()) == 1
    for _ in range(3):
        assert vsock("session", "close", "alpha").returncode == 0
        assert vsock("session", "open", "alpha").returncode == 0
        assert vsock("exec", "alpha", "--", "true").returncode == 0
    assert vsock("session", "close", "alpha").returncode == 0
    assert logins(sshd) <= 5


def test_master_that_is_stopped_holds_nobody_up(opened: SshServer) -> None:
    """Commands do without it; the listing says that it does not answer."""
    (status,) = sessions()
    os.kill(int(str(status["pid"])), signal.SIGSTOP)
    try:
        assert vsock("exec", "alpha", "--", "echo", "on").stdout == b"on\n"
        done = vsock("session", "ls")
        assert (done.returncode, done.stdout) == (0, b"Sessions: none\n")
        assert done.stderr == SILENT
        done = vsock("session", "open", "alpha")
        assert (done.returncode, done.stderr.count(b"\n")) == (255, 1)
    finally:
        os.kill(int(str(status["pid"])), signal.SIGCONT)
    assert len(sessions()) == 1
    assert logins(opened) == 3


@pytest.mark.usefixtures("sshd")
def test_session_holds_nothing_of_who_opened_it() -> None:
    """For instance a lock of a shell script."""
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    command = [sys.executable, "-m", "vsock.cli", "session", "open", "alpha"]
    assert subprocess.run(command, close_fds=False, timeout=DEADLINE, check=False).returncode == 0
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert vsock("session", "close", "alpha").returncode == 0


def test_directory_that_others_may_enter_is_not_used(opened: SshServer) -> None:
    """Who reaches a socket there uses the session."""
    sessions_dir().chmod(0o750)
    assert sessions() == []
    assert vsock("exec", "alpha", "--", "echo", "on").stdout == b"on\n"
    done = vsock("session", "open", "alpha")
    assert (done.returncode, done.stderr.count(b"\n")) == (255, 1)
    assert b"its mode must be 0700" in done.stderr
    sessions_dir().chmod(0o700)
    assert len(sessions()) == 1
    assert logins(opened) == 3


def wait_until_nothing_runs() -> None:
    """The master hears of the end of a client on its own time."""
    deadline = time.monotonic() + DEADLINE
    while sessions()[0]["running"]:
        assert time.monotonic() < deadline


def wait_until_there_is_none() -> None:
    """The master ends on its own time."""
    wait_for_sessions(0)


def wait_for_sessions(count: int) -> None:
    """Masters begin and end on their own time."""
    deadline = time.monotonic() + DEADLINE
    while len(sessions()) != count:
        assert time.monotonic() < deadline

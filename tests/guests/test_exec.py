"""`vsock exec` and sessions with a stock Debian 13: its systemd and sshd, and nothing of ours."""

import asyncio
import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pytest
from tests.guests.conftest import DEBIAN_USER

import vsock
from vsock.ssh.identity import Identity
from vsock.testing.debian import DebianGuest
from vsock.testing.plugin import DEBIAN
from vsock.transports import SwitchTransport

SECONDS = 120


pytestmark = pytest.mark.usefixtures("debian_user")


def command(*words: str) -> list[str]:
    """The `vsock` command."""
    return [sys.executable, "-m", "vsock.cli", *words]


def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run it."""
    return subprocess.run(
        command(*words), input=given, capture_output=True, timeout=SECONDS, check=False
    )


@pytest.fixture(autouse=True)
def traceback_of_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is ended by SIGABRT says where it was."""
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")


def in_guest(line: str) -> str:
    """The output of a line for the guest's shell."""
    done = run("exec", DEBIAN, "--", "sh", "-c", line)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def until_runs(pattern: str) -> None:
    """Wait until a process of the guest has this in its command line.

    dash ignores SIGINT in a child between vfork and exec: sent then, the signal would be lost to both.
    """
    deadline = time.monotonic() + SECONDS
    while in_guest(f"pgrep -x -c -f '{pattern}' || true") == "0":
        assert time.monotonic() < deadline, in_guest("ps -ef")


def until_gone(pattern: str) -> None:
    """Wait until no process of the guest has this in its command line."""
    deadline = time.monotonic() + SECONDS
    while in_guest(f"pgrep -c -f '{pattern}' || true") != "0":
        assert time.monotonic() < deadline, in_guest("ps -ef")


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that are ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def code_of(process: "subprocess.Popen[bytes]") -> int:
    """The exit code; if there is none, the failure says what the guest and the process do."""
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        there = in_guest("ps -ef")
        process.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER: it prints where it is
        said = process.communicate(timeout=SECONDS)
        raise AssertionError(f"{process.args!r} does not end\n{there}\n{said}") from None


@pytest.fixture(params=["a login of its own", "a session that is kept open"])
def logged_in(request: pytest.FixtureRequest, debian_user: None) -> Iterator[None]:
    """How commands reach the guest: with a login of their own, or in a session that is kept open."""
    assert debian_user is None  # it says where the guest is
    kept = request.param == "a session that is kept open"
    if kept:
        done = run("session", "open", DEBIAN)
        assert done.returncode == 0, done.stderr
    yield
    if kept:
        done = run("session", "close", DEBIAN)
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("logged_in")
def test_command_runs_in_stock_debian_without_any_question() -> None:
    """Ten megabytes in and out; streams apart; the exit code is kept."""
    done = run("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    assert done.returncode == 0, done.stderr
    data = os.urandom(10 << 20)
    done = run(
        "exec",
        DEBIAN,
        "--",
        "sh",
        "-c",
        "sha256sum; head -c 1000000 /dev/zero; echo e >&2; exit 9",
        given=data,
    )
    digest = hashlib.sha256(data).hexdigest().encode()
    assert (done.returncode, done.stderr) == (9, b"e\n")
    assert done.stdout == digest + b"  -\n" + bytes(1_000_000)
    assert run("exec", DEBIAN, "--", "printf", os.fsdecode(b"\xff")).stdout == b"\xff"


def test_other_users_are_let_in_too() -> None:
    """As `vsock qemu-args --ssh --user` has it; with a directory and a variable."""
    done = run(
        "exec",
        DEBIAN,
        "-u",
        DEBIAN_USER,
        "-w",
        "/tmp",
        "-e",
        "A=b c",
        "--",
        "sh",
        "-c",
        'id -un; pwd; echo "$A"',
    )
    assert done.stdout == f"{DEBIAN_USER}\n/tmp\nb c\n".encode(), done.stderr


@pytest.mark.usefixtures("logged_in")
def test_signals_and_timeouts_leave_nothing_running(running: list[subprocess.Popen[bytes]]) -> None:
    """Ctrl-C goes to the command and its children; one that ignores it is killed at its timeout."""
    line = "echo begun; sleep 1111; echo not reached"
    process = subprocess.Popen(
        command("exec", DEBIAN, "--", "sh", "-c", line),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.append(process)
    assert process.stdout
    assert process.stdout.readline() == b"begun\n"
    until_runs("sleep 111[1]")
    process.send_signal(signal.SIGINT)
    assert code_of(process) == 130
    assert process.stdout.read() == b""
    until_gone("sleep 111[1]")
    done = run(
        "exec", "--timeout", "3", DEBIAN, "--", "sh", "-c", "trap '' TERM; sleep 2222; sleep 2222"
    )
    assert (done.returncode, done.stderr) == (124, b"vsock: debian: COMMAND was ended after 3 s\n")
    until_gone("sleep 222[2]")
    done = run("exec", "--max-output", "10", DEBIAN, "--", "yes")
    assert (done.returncode, done.stdout) == (255, b"y\n" * 5)
    until_gone("^ye[s]")


@pytest.mark.usefixtures("logged_in")
def test_terminal_has_the_size_of_ours_and_follows_it(
    running: list[subprocess.Popen[bytes]],
) -> None:
    """Keys reach the program, Ctrl-C too; the exit code comes back and the terminal is as before."""
    ours, theirs = pty.openpty()
    try:
        ioctl(ours, TIOCSWINSZ, pack("HHHH", 33, 101, 0, 0))
        process = subprocess.Popen(
            command("shell", DEBIAN),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        running.append(process)
        expect(ours, rb"# $")
        os.write(ours, b"stty size\r")
        expect(ours, rb"33 101\r\n")
        ioctl(ours, TIOCSWINSZ, pack("HHHH", 44, 55, 0, 0))
        process.send_signal(signal.SIGWINCH)
        # The program must run: the shell itself, if Ctrl-C finds it between two lines, may forget the next key.
        os.write(ours, b"sh -c 'echo be''gun; exec sleep 3333'\r")
        expect(ours, rb"begun\r\n")
        os.write(ours, b"\x03")
        expect(ours, rb"(?s)\^C.*# $")
        os.write(ours, b"stty size; exit 6\r")
        expect(ours, rb"44 55\r\n")
        assert code_of(process) == 6
    finally:
        os.close(ours)
        os.close(theirs)
    until_gone("sleep 333[3]")


def expect(terminal: int, pattern: bytes) -> None:
    """Read until the output matches."""
    seen = b""
    while not re.search(pattern, seen):
        assert select.select([terminal], [], [], SECONDS)[0], seen
        piece = os.read(terminal, 4096)
        assert piece, seen
        seen += piece


def test_jobs_outlive_the_session_as_units_of_systemd() -> None:
    """Root's; another user's would not in a guest without pam_systemd, and are refused."""
    words = ("exec", DEBIAN, "--detach", "--name", "one", "-w", "/usr", "--")
    until = "until [ -e /tmp/go ]; do sleep 0.1; done"
    script = f"pwd; cat /proc/self/cgroup; echo err >&2; {until}; exit 7"
    done = run(*words, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\n", b"")
    (job,) = json.loads(run("jobs", DEBIAN, "--json").stdout)
    assert (job["id"], job["state"]) == ("one", "running"), run("attach", DEBIAN, "one")
    in_guest("touch /tmp/go")
    done = run("attach", DEBIAN, "one")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, lines[0], done.stderr) == (7, "/usr", b"err\n")
    assert lines[1].endswith("/system.slice/vsock-job-one.service")
    assert run("jobs", DEBIAN, "--remove", "one").returncode == 0
    assert in_guest("systemctl list-units --all --plain --no-legend 'vsock-job-*'") == ""
    done = run("exec", DEBIAN, "-u", DEBIAN_USER, "--detach", "--", "true")
    assert done.returncode == 255
    assert done.stderr.startswith(b"vsock: debian: jobs of joe would end with the session, as part")
    assert json.loads(run("jobs", DEBIAN, "-u", DEBIAN_USER, "--json").stdout) == []


def test_clock_that_is_wrong_is_seen_and_set() -> None:
    """After a pause, for instance. Who is not root is told so in one line."""
    in_guest("date -s @$(($(date +%s) - 3600))")
    done = run("clock", DEBIAN)
    assert re.fullmatch(rb"the clock of debian is 1h00m behind\n|.* 59m\d\ds behind\n", done.stdout)
    done = run("clock", DEBIAN, "--set", "-u", DEBIAN_USER)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"debian did not set its clock: date: cannot set date" in done.stderr
    done = run("clock", DEBIAN, "--set", "--json")
    assert abs(json.loads(done.stdout)["offset"]) < 1, done.stderr


def test_status_and_journal_of_a_systemd_guest() -> None:
    """One row; the journal with the options of journalctl."""
    done = run("status", DEBIAN)
    assert re.search(rb"^  debian +(running|degraded) ", done.stdout, re.MULTILINE), done.stderr
    assert b"Debian GNU/Linux 13" in done.stdout
    in_guest("logger -t test marker-in-the-journal")
    done = run("journal", DEBIAN, "-t", "test", "-o", "cat")
    assert done.stdout == b"marker-in-the-journal\n", done.stderr


async def test_session_lives_on_while_the_guest_is_paused(
    debian: DebianGuest, transport: SwitchTransport
) -> None:
    """QMP stop and cont, as for a snapshot: the command waits, and goes on."""
    async with vsock.guest_session(DEBIAN, transport=transport) as guest:
        process = await guest.open_process("cat")
        process.stdin.write("before\n")
        assert await process.stdout.readline() == "before\n"
        await asyncio.to_thread(debian.qmp, "stop")
        try:
            process.stdin.write("during\n")
            answer = asyncio.ensure_future(process.stdout.readline())
            done, _ = await asyncio.wait({answer}, timeout=0.5)
            assert not done
        finally:
            await asyncio.to_thread(debian.qmp, "cont")
        assert await answer == "during\n"
        process.stdin.write_eof()
        assert (await process.wait()).exit_status == 0


def test_identity_is_the_one_that_the_guest_was_booted_with(state_home: Path) -> None:
    """systemd has written it for root."""
    key = Identity(state_home / "vsock").public_key()
    assert key in in_guest("cat ~/.ssh/authorized_keys")

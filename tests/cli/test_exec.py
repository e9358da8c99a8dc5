"""`vsock exec` and `vsock shell`: streams apart, exit codes, several guests; errors are one line and 255.

What a command does is the same with a login of its own and in a session that is kept open: the fixture `logged_in`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl
from functools import partial
from pathlib import Path
from select import PIPE_BUF

import pytest
from tests.ssh.server import SshServer
from tests.unread import is_half_full
from tests.waiting import until

from vsock.cli.main import main
from vsock.guest import Guest
from vsock.ssh.identity import Identity
from vsock.switch import Switch

DEADLINE = 40


@pytest.fixture(autouse=True)
def sshd(guest: Guest) -> Iterator[SshServer]:
    """An SSH server in alpha."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running


def vsock(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command."""
    command = [sys.executable, "-m", "vsock.cli", *words]
    return subprocess.run(command, input=given, capture_output=True, timeout=DEADLINE, check=False)


@pytest.fixture(params=["a login of its own", "a session that is kept open"])
def logged_in(request: pytest.FixtureRequest, sshd: SshServer) -> Iterator[None]:
    """How commands reach the guest; in a session that is kept open they need no login, and leave nothing running."""
    if request.param == "a login of its own":
        yield
        return
    done = vsock("session", "open", "alpha")
    assert (done.returncode, done.stderr) == (0, b"")
    try:
        yield
        deadline = time.monotonic() + DEADLINE
        while json.loads(vsock("session", "ls", "--json").stdout)[0]["running"]:
            assert time.monotonic() < deadline
        assert len(sshd.connections) == 1
    finally:
        vsock("session", "close", "--all")


@pytest.mark.usefixtures("logged_in")
def test_streams_are_apart_and_bytes() -> None:
    """Three megabytes of each, in and out."""
    data = os.urandom(3 << 20)
    done = vsock("exec", "alpha", "--", "sh", "-c", "tee /dev/stderr", given=data)
    assert (done.returncode, done.stdout == data, done.stderr == data) == (0, True, True)


@pytest.mark.usefixtures("logged_in")
@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (["echo", "a  b", "$HOME"], 0, b"a  b $HOME\n"),
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "kill -TERM $$"], 143, b""),
        (["no such command"], 127, b""),
    ],
)
def test_exit_code_is_that_of_the_command(words: list[str], code: int, out: bytes) -> None:
    """128 and the number of the signal that ended it."""
    done = vsock("exec", "alpha", "--", *words)
    assert (done.returncode, done.stdout) == (code, out), done.stderr


@pytest.mark.usefixtures("logged_in")
def test_environment_and_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name alone has the value that it has here."""
    monkeypatch.setenv("FROM_HERE", "'quoted'  twice")
    options = ("-e", "A=b=c", "-e", "FROM_HERE", "-w", "/usr/lib")
    done = vsock("exec", "alpha", *options, "--", "sh", "-c", 'echo "$A $FROM_HERE"; pwd')
    assert done.stdout == b"b=c 'quoted'  twice\n/usr/lib\n"


def test_several_guests_at_once(switch: Switch) -> None:
    """Lines have the names of their guests; one that fails does not stop the others."""
    with Guest(switch.socket_path("beta")) as beta:
        with SshServer(beta, Identity.of_user().public_key()):
            command = ("--", "sh", "-c", "echo one; printf two; echo three >&2")
            done = vsock("exec", "alpha", "beta", "gamma", *command)
    lines = {name: [f"{name}: one", f"{name}: two"] for name in ("alpha", "beta")}
    said = done.stdout.decode().splitlines()
    for name, expected in lines.items():
        assert [line for line in said if line.startswith(name)] == expected
    errors = done.stderr.decode().splitlines()
    assert sorted(errors[:2]) == ["alpha: three", "beta: three"]
    assert errors[2].startswith("vsock: gamma: ")
    assert (done.returncode, len(errors)) == (255, 3)


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_several_guests_use_sessions_that_are_kept_open(
    switch: Switch, sshd: SshServer, words: tuple[str, ...]
) -> None:
    """A guest that has none is logged in to, and each has its own exit code, limits and errors."""
    assert vsock("session", "open", "alpha").returncode == 0
    try:
        with Guest(switch.socket_path("beta")) as beta:
            with SshServer(beta, Identity.of_user().public_key()) as other:
                options = ("--max-output", "100000", *words)
                script = "echo out; printf err >&2; exit 4"
                done = vsock("exec", "alpha", "beta", *options, "--", "sh", "-c", script)
                endless = vsock("exec", "alpha", "beta", *options, "--", "yes")
                late = vsock("exec", "alpha", "beta", *words, "--timeout", "1", "--", "sleep", "60")
                assert (len(sshd.connections), len(other.connections)) == (1, 3)
    finally:
        vsock("session", "close", "--all")
    assert (done.returncode, endless.returncode, late.returncode) == (4, 255, 124)
    if words:
        for one in json.loads(done.stdout):
            assert (one["stdout"], one["stderr"], one["error"]) == ("out\n", "err", None)
        for one in json.loads(endless.stdout):
            assert len(one["stdout"]) == 100_000
        assert [one["exit_code"] for one in json.loads(late.stdout)] == [124, 124]
    else:
        assert sorted(done.stdout.splitlines()) == [b"alpha: out", b"beta: out"]
        assert sorted(done.stderr.splitlines()) == [b"alpha: err", b"beta: err"]
        assert sorted(late.stderr.splitlines()) == [
            b"vsock: alpha: COMMAND was ended after 1 s",
            b"vsock: beta: COMMAND was ended after 1 s",
        ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_commands_of_several_guests(
    switch: Switch, tmp_path: Path, number: signal.Signals
) -> None:
    """One in a session that is kept open, which has nothing to run then, and one with a login of its own."""
    begun = tmp_path / "begun"
    begun.mkdir()
    assert vsock("session", "open", "alpha").returncode == 0
    try:
        with (
            Guest(switch.socket_path("beta")) as beta,
            SshServer(beta, Identity.of_user().public_key()),
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "vsock.cli", "exec", "alpha", "beta", "--"),
                    *("sh", "-c", f"touch {begun}/$$; exec sleep 600"),
                ],
                stderr=subprocess.PIPE,
            ) as process,
        ):
            until(lambda: len(list(begun.iterdir())) == 2)
            process.send_signal(number)
            _, err = process.communicate(timeout=DEADLINE)
            until(lambda: not json.loads(vsock("session", "ls", "--json").stdout)[0]["running"])
    finally:
        vsock("session", "close", "--all")
    expected = (130, b"") if number == signal.SIGINT else (255, INTERRUPTED)
    assert (process.returncode, err.strip()) == expected


INTERRUPTED = b"vsock: interrupted; COMMAND was told to end"


@pytest.fixture
def beta(switch: Switch) -> Iterator[SshServer]:
    """An SSH server in a second guest."""
    with (
        Guest(switch.socket_path("beta")) as guest,
        SshServer(guest, Identity.of_user().public_key()) as running,
    ):
        yield running


@pytest.mark.parametrize("words", [(), ("--timeout", "600")])
@pytest.mark.usefixtures("beta")
def test_lines_of_several_guests_are_whole(words: tuple[str, ...], tmp_path: Path) -> None:
    """Also if the pipe takes a part of them, while both write."""
    script = (
        f"cd {tmp_path}; mkdir one || mkdir both; until [ -e both ]; do sleep 0.01; done;"
        " exec seq 100000 400000"
    )
    with begun("alpha", "beta", *words, "--", "sh", "-c", script) as process:
        assert process.stdout
        fcntl(process.stdout, F_SETPIPE_SZ, PIPE_BUF)
        lines = process.stdout.read().splitlines()
        assert process.wait(DEADLINE) == 0
    whole = {f"{name}: {n}".encode() for name in ("alpha", "beta") for n in range(100_000, 400_001)}
    assert (len(lines), set(lines) - whole) == (len(whole), set())


def test_output_that_nobody_reads_does_not_outlast_an_interrupt(
    sshd: SshServer, beta: SshServer, tmp_path: Path
) -> None:
    """Also if the rest of a line is to be written, of a guest whose command has ended."""
    script = (
        f"mkdir {tmp_path}/one && exec seq 1000000;"
        f" until [ -e {tmp_path}/full ]; do sleep 0.1; done; printf rest"
    )
    with begun("alpha", "beta", "--", "sh", "-c", script) as process:
        assert process.stdout
        until(partial(is_half_full, process.stdout))
        (tmp_path / "full").touch()
        until(lambda: any(one.is_closed() for one in sshd.connections + beta.connections))
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(DEADLINE) == 255
        finally:
            process.kill()


def begun(*words: str) -> "subprocess.Popen[bytes]":
    """Start `vsock exec`, whose output the test reads."""
    command = [sys.executable, "-m", "vsock.cli", "exec", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.usefixtures("logged_in")
def test_results_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no text is escaped."""
    words = ["exec", "alpha", "--json", "--", "sh", "-c", r"printf 'a\377'; echo b >&2; exit 3"]
    assert main(words) == 3
    (result,) = json.loads(capsys.readouterr().out)
    assert result == {
        "guest": "alpha",
        "exit_code": 3,
        "signal": None,
        "stdout": "a\\xff",
        "stderr": "b\n",
        "error": None,
    }


@pytest.mark.usefixtures("logged_in")
def test_shell_without_a_terminal_reads_commands() -> None:
    """As `ssh alpha < script` does."""
    done = vsock("shell", "alpha", given=b"echo $((6 * 7))\nexit 9\n")
    assert (done.returncode, done.stdout) == (9, b"42\n")


@pytest.mark.usefixtures("logged_in")
def test_reader_that_is_gone_ends_the_command() -> None:
    """As a local command ends in `command | head -1`."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--", "yes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE) == 1


@pytest.mark.usefixtures("logged_in")
def test_input_that_cannot_be_read_is_a_failure(tmp_path: Path) -> None:
    """And the command ends, which would wait for the end of its input."""
    with (tmp_path / "only to write").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--", "cat"],
            stdin=file,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (255, b"vsock: Bad file descriptor\n")


@pytest.mark.usefixtures("logged_in")
def test_input_that_does_not_block_is_waited_for() -> None:
    """As a pipe that another program has made so."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--"]
    with subprocess.Popen(
        [*command, "sh", "-c", "echo begun; cat"], stdin=reader, stdout=subprocess.PIPE
    ) as process:
        os.close(reader)
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        os.write(writer, b"later\n")
        os.close(writer)
        assert process.communicate(timeout=DEADLINE)[0] == b"later\n"


def test_guest_that_is_lost_ends_the_command_in_one_line(switch: Switch) -> None:
    """Its command did not end, whatever it has written: the session did, and no descriptor of ours has failed."""
    command = [sys.executable, "-m", "vsock.cli", "exec", "alpha", "--", "sh", "-c"]
    with subprocess.Popen(
        [*command, "echo begun; sleep 1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        switch.remove_guest("alpha")
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 255
    assert (err.count("\n"), err[:36]) == (1, "vsock: the session with alpha ended:")


def test_own_failures_are_one_line_and_255() -> None:
    """No sshd, no guest, no switch."""
    for words, reason in (
        (("gamma",), b"gamma does not answer"),
        (("nobody",), b"nobody"),
        (("alpha", "-p", "9"), b"nobody listens on port 9 of alpha"),
        (("alpha", "--runtime-dir", "/nonexistent"), b"no switch answers in /nonexistent"),
    ):
        done = vsock("exec", *words, "--", "true")
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (255, b"", 1)
        assert done.stderr.startswith(b"vsock: ")
        assert reason in done.stderr

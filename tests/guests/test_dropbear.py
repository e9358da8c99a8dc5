"""`vsock exec`, `cp` and `forward` with a small guest: busybox, dropbear and socat, set up by what `vsock guest setup` prints."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from tests.guests.bare_guest import BareGuest
from tests.guests.conftest import SwitchProcess

import vsock
from vsock.ssh.guest_server import File, cpio
from vsock.testing.errors import GuestUnavailable
from vsock.testing.images import find_dropbear
from vsock.testing.plugin import REQUIRED_VARIABLE

NAME = "small"
CID = 92
SECONDS = 60
SIZE = 3 << 20
SETUP = "etc/vsock-setup"
"""As in guests/dropbear.py: the guest runs these lines at its boot."""


def command(*words: str) -> list[str]:
    """The `vsock` command."""
    return [sys.executable, "-m", "vsock.cli", *words]


def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run it."""
    return subprocess.run(
        command(*words), input=given, capture_output=True, timeout=SECONDS, check=False
    )


def in_guest(line: str) -> str:
    """The output of a line for the guest's shell, which succeeds."""
    done = run("exec", NAME, "--", "sh", "-c", line)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode().strip()


def said_by(*words: str) -> str:
    """What a command that fails says, in one line."""
    done = run(*words)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    return line


@pytest.fixture(scope="module")
def guest(
    vsock_switch: SwitchProcess,
    state_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BareGuest]:
    """The guest, whose last step of booting is the lines for a guest with busybox, as they are printed."""
    try:
        image = find_dropbear()
    except GuestUnavailable as missing:
        if os.environ.get(REQUIRED_VARIABLE):
            pytest.fail(f"{missing} ({REQUIRED_VARIABLE} is set)")
        pytest.skip(str(missing))
    lines = subprocess.run(
        command("guest", "setup", NAME, "--for", "busybox"),
        env={**os.environ, "XDG_STATE_HOME": str(state_home)},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    archive = tmp_path_factory.mktemp("small") / "initramfs"
    archive.write_bytes(image.initramfs.read_bytes() + cpio([File(SETUP, 0o100644, lines)]))
    added = vsock_switch.run("guest", "add", NAME, str(CID))
    assert added.returncode == 0, added.stderr
    work = Path(tempfile.mkdtemp(prefix="vsock-small-"))
    running = BareGuest(image, archive, vsock_switch.socket_path(NAME), NAME, work)
    try:
        waited = vsock_switch.run("wait", NAME, "--port=22", f"--timeout={SECONDS}")
        assert waited.returncode == 0, f"{waited.stderr}\n{running.console()}"
        yield running
    finally:
        running.kill()
        shutil.rmtree(work, ignore_errors=True)
        vsock_switch.run("guest", "remove", NAME)


@pytest.fixture(autouse=True)
def user(guest: BareGuest, vsock_environment: None) -> Iterator[None]:
    """Commands find the switch, and the key that the lines let in."""
    yield
    assert guest.process.status is None, guest.console()


@pytest.fixture(params=["a login of its own", "a session that is kept open"])
def logged_in(request: pytest.FixtureRequest, user: None) -> Iterator[None]:
    """How commands reach the guest: with a login of their own, or in a session that is kept open."""
    kept = request.param == "a session that is kept open"
    if kept:
        assert run("session", "open", NAME).returncode == 0
    yield
    if kept:
        assert run("session", "close", NAME).returncode == 0


@pytest.mark.usefixtures("logged_in")
def test_command_has_its_streams_and_exit_code(guest: BareGuest) -> None:
    """A megabyte in; standard output and error apart, any bytes; a directory and a variable."""
    data = os.urandom(1 << 20)
    done = run(
        *("exec", NAME, "-w", "/usr", "-e", "A=b c", "--", "sh", "-c"),
        'sha256sum; echo "$PWD $A" >&2; exit 9',
        given=data,
    )
    assert done.stdout == f"{hashlib.sha256(data).hexdigest()}  -\n".encode(), guest.console()
    assert (done.stderr, done.returncode) == (b"/usr b c\n", 9)
    assert run("exec", NAME, "--", "printf", os.fsdecode(b"\xff\\0")).stdout == b"\xff\0"


@pytest.fixture
def started(logged_in: None) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Starts a script for the guest's shell, which says that it has begun."""
    running: list[subprocess.Popen[bytes]] = []

    def start(script: str) -> "subprocess.Popen[bytes]":
        words = command("exec", NAME, "--", "sh", "-c", script)
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe)
        running.append(process)
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_signal_reaches_a_command_and_what_it_has_started(
    started: Callable[[str], "subprocess.Popen[bytes]"],
) -> None:
    """dropbear signals the shell alone, which would wait for its program. A signal may be caught; a second one kills.

    Another command goes on, in the same session too.
    """
    other = started("echo begun; cat >/dev/null; exit 3")
    script = "sh -c 'echo begun; exec sleep 1111'; echo not reached"
    process = started(script)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    assert process.communicate() == (b"", b"")
    until_nothing_sleeps()
    process = started("trap 'echo caught; exit 5' TERM; echo begun; while :; do sleep 0.1; done")
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 5
    assert process.communicate()[0] == b"caught\n"
    process = started("trap 'echo caught' INT; sh -c 'trap \"\" INT; echo begun; exec sleep 2222'")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) in (137, 255)
    until_nothing_sleeps()
    assert other.poll() is None
    other.communicate()
    assert other.returncode == 3


@pytest.mark.usefixtures("logged_in")
def test_timeout_leaves_nothing_running() -> None:
    """Of a shell and its program: by SIGTERM, then by SIGKILL."""
    for script in ("sleep 3333; true", "trap '' TERM; sleep 4444; true"):
        done = run("exec", "--timeout=2", NAME, "--", "sh", "-c", script)
        text = f"vsock: {NAME}: COMMAND was ended after 2 s\n"
        assert (done.returncode, done.stderr.decode()) == (124, text)
        until_nothing_sleeps()


def until_nothing_sleeps() -> None:
    """Wait until there is no program `sleep` in the guest."""
    deadline = time.monotonic() + SECONDS
    while in_guest("pidof sleep || true"):
        assert time.monotonic() < deadline, in_guest("ps")


def test_tree_is_copied_both_ways(tmp_path: Path) -> None:
    """With OpenSSH's sftp-server in the guest: over a connection of its own, which socat opens there."""
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    data = os.urandom(SIZE)
    (tree / "inner/big").write_bytes(data)
    (tree / "inner/big").chmod(0o640)
    (tree / "link").symlink_to("inner/big")
    done = run("cp", "--json", str(tree), f"{NAME}:/tmp/there")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    names = ("files", "links", "bytes", "failed", "over_ssh")
    assert [result[name] for name in names] == [1, 1, SIZE, 0, []]
    digest = hashlib.sha256(data).hexdigest()
    assert in_guest("cd /tmp/there; sha256sum <inner/big; stat -c %a inner/big; readlink link") == (
        f"{digest}  -\n640\ninner/big"
    )
    done = run("cp", f"{NAME}:/tmp/there", str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back/inner/big").read_bytes() == data
    assert (tmp_path / "back/inner/big").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "back/link").readlink() == Path("inner/big")
    # dropbear starts it too, if ssh is to carry the data.
    done = run("cp", "--encrypted", f"{NAME}:/tmp/there/inner/big", "-")
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr
    in_guest("rm -r /tmp/there")


def test_guest_without_sftp_server_is_told_in_one_line(tmp_path: Path) -> None:
    """dropbear has none of its own, and says nothing itself."""
    (tmp_path / "file").write_bytes(b"text")
    server = "/usr/lib/openssh/sftp-server"
    in_guest(f"mv {server} /usr/lib/openssh/away")
    try:
        line = said_by("cp", str(tmp_path / "file"), f"{NAME}:/tmp")
    finally:
        in_guest(f"mv /usr/lib/openssh/away {server}")
    assert line == (f"vsock: sshd of {NAME} has no SFTP: is its sftp-server installed?")


@pytest.fixture
def forwarded() -> Iterator[Callable[..., IO[str]]]:
    """Starts `vsock forward`, and returns what it says."""
    running: list[subprocess.Popen[str]] = []

    def start(*words: str) -> IO[str]:
        process = subprocess.Popen(
            command("forward", *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        running.append(process)
        assert process.stdout
        return process.stdout

    yield start
    for process in running:
        process.terminate()
        process.communicate(timeout=SECONDS)


def port_in(line: str) -> int:
    """The port at which a forward listens."""
    assert line.startswith("forwarding "), line
    return int(line.split()[1].rpartition(":")[2])


def test_ports_of_the_guest_and_of_this_host_are_forwarded(
    forwarded: Callable[..., IO[str]],
) -> None:
    """A TCP port of the guest as one of this host by dropbear, and one of this host as a port of the guest."""
    with vsock.guest_session(NAME) as session, socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        session.run(
            "echo from the guest >/tmp/index.html; httpd -p 127.0.0.1:8080 -h /tmp", check=True
        )
        port = port_in(forwarded("-L", "127.0.0.1:0:127.0.0.1:8080", NAME).readline())
        with socket.create_connection(("127.0.0.1", port), SECONDS) as web:
            web.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            assert web.makefile("rb").read().endswith(b"\r\n\r\nfrom the guest\n")
        port = port_in(forwarded("-R", f"0:127.0.0.1:{server.getsockname()[1]}", NAME).readline())
        with subprocess.Popen(
            command("exec", NAME, "--", "nc", "127.0.0.1", str(port)), stdout=subprocess.PIPE
        ) as client:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"from the host\n")
            assert client.communicate(timeout=SECONDS)[0] == b"from the host\n"
        session.run("killall httpd; rm /tmp/index.html", check=True)


def test_what_dropbear_does_not_forward_is_told_in_one_line(
    forwarded: Callable[..., IO[str]], short_path: Path
) -> None:
    """It has no forwards of Unix sockets, for which it gives a number; for a closed port it gives the reason."""
    said = forwarded("-L", "0:127.0.0.1:1", "-L", f"{short_path}/there:/tmp/there", NAME)
    port = port_in(said.readline())
    assert said.readline().startswith("forwarding ")
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        assert connection.recv(1) == b""
    assert said.readline() == f"vsock: 127.0.0.1:1 of {NAME}: Connection refused\n"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.settimeout(SECONDS)
        unix.connect(f"{short_path}/there")
        assert unix.recv(1) == b""
    assert said.readline() == (
        f"vsock: /tmp/there of {NAME}: its sshd forwards nothing to Unix sockets, as dropbear\n"
    )
    line = said_by("forward", "-R", "/tmp/there:127.0.0.1:1", NAME)
    assert line == (
        f"vsock: sshd of {NAME} does not listen at /tmp/there:"
        " is it taken, or does its sshd forward no Unix sockets, as dropbear?"
    )


def test_share_says_what_is_missing(tmp_path: Path) -> None:
    """It has no sshfs."""
    line = said_by("share", str(tmp_path), f"{NAME}:/tmp/shared")
    assert line.startswith(f"vsock: {NAME}: it has no sshfs: install ")

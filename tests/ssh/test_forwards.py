"""Forwards over a session, in ssh's words: what is written, and what `vsock forward` then does."""

import hashlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from asyncssh import generate_private_key
from tests.ssh.server import SshServer

from vsock.errors import UsageError
from vsock.guest import Guest
from vsock.ssh.forwards import Forward, Kind, Port, parse_forward
from vsock.ssh.identity import Identity
from vsock.switch import Switch

SECONDS = 30
SIZE = 1 << 20

Start = Callable[..., "tuple[subprocess.Popen[str], list[str]]"]


@pytest.mark.parametrize(
    ("kind", "text", "listen", "target"),
    [
        ("L", "8080:localhost:80", Port("localhost", 8080), Port("localhost", 80)),
        ("L", "*:0:a.test:80", Port("", 0), Port("a.test", 80)),
        ("L", ":8080:a.test:80", Port("", 8080), Port("a.test", 80)),
        ("L", "[::1]:8080:[2001:db8::1]:80", Port("::1", 8080), Port("2001:db8::1", 80)),
        ("L", "8080:/run/s", Port("localhost", 8080), "/run/s"),
        ("L", "./s:/run/s", "./s", "/run/s"),
        ("R", "/run/s:localhost:80", "/run/s", Port("localhost", 80)),
        ("R", "0.0.0.0:22:b:22", Port("0.0.0.0", 22), Port("b", 22)),
        ("D", "1080", Port("localhost", 1080), None),
        ("D", "[::1]:1080", Port("::1", 1080), None),
    ],
)
def test_forms_of_ssh_are_read(kind: str, text: str, listen: object, target: object) -> None:
    """Without an address to bind it is localhost."""
    read = parse_forward(cast("Kind", kind), text)
    assert read == Forward(cast("Kind", kind), listen, target)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            ("L", text)
            for text in ("", "8080", "80:80", "a:b:c", "8080:a:0", "8080::80", "65536:a:80")
        ),
        *(
            ("L", text)
            for text in (
                "::1:8080:a:80",
                "[::1:8080:a:80",
                "8080:a:80:90",
                "/s",
                "8080:a:",
                "²:a:80",
            )
        ),
        *(("R", text) for text in ("1080", "a:1080")),
        *(("D", text) for text in ("", "x", "/s", "1080:a:80", "1080:80", "[]:1080", "[*]:1080")),
    ],
)
def test_what_is_no_form_of_ssh_is_refused(kind: str, text: str) -> None:
    """With the forms that there are."""
    with pytest.raises(UsageError, match="write"):
        parse_forward(cast("Kind", kind), text)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command; returns it with the ends at which it listens."""
    running: list[subprocess.Popen[str]] = []

    def begin(*words: str, forwards: int = 1) -> "tuple[subprocess.Popen[str], list[str]]":
        process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", "forward", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(forwards)]
        assert all(line.startswith("forwarding ") for line in lines), process.communicate()
        return process, lines

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def digests(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A TCP port and a Unix socket that answer, after the end of the data, with its digest."""
    path = tmp_path / "target"
    listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
    listeners[1].bind(str(path))
    listeners[1].listen()

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # the end of the test
            with connection:
                seen = hashlib.sha256()
                while data := connection.recv(65536):
                    seen.update(data)
                connection.sendall(seen.hexdigest().encode())

    threads = [threading.Thread(target=serve, args=(one,)) for one in listeners]
    for thread in threads:
        thread.start()
    yield listeners[0].getsockname()[1], path
    for listener, thread in zip(listeners, threads, strict=True):
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def digest_through(sock: socket.socket) -> None:
    """Send data and its end, and compare the answer."""
    data = os.urandom(SIZE)
    with sock:
        sock.settimeout(SECONDS)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(1000):
            answer += piece
    assert answer.decode() == hashlib.sha256(data).hexdigest()


def port_of(line: str) -> int:
    """The port at which a line says that it listens."""
    return int(line.split()[1].rpartition(":")[2])


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_all_kinds_at_once(
    sshd: SshServer,
    start: Start,
    digests: tuple[int, Path],
    tmp_path: Path,
    ended_by: signal.Signals,
) -> None:
    """Ports and Unix sockets on both sides; ends are passed on alone; what was made here is gone at the end."""
    port, path = digests
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    process, lines = start(
        *(
            "-L",
            f"0:127.0.0.1:{port}",
            "-L",
            f"127.0.0.1:0:{path}",
            "-L",
            f"{ours}:127.0.0.1:{port}",
        ),
        *("-R", f"127.0.0.1:0:127.0.0.1:{port}", "-R", f"{theirs}:{path}", "-D", "127.0.0.1:0"),
        "alpha",
        forwards=6,
    )
    assert lines[0].endswith(f" to 127.0.0.1:{port} of alpha\n")
    assert lines[3].endswith(f" of alpha to 127.0.0.1:{port}\n")
    for line in (lines[0], lines[1], lines[3]):
        digest_through(socket.create_connection(("127.0.0.1", port_of(line))))
    for name in (ours, theirs):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(name))
        digest_through(sock)
    sock = socket.create_connection(("127.0.0.1", port_of(lines[5])))
    sock.sendall(b"\5\1\0")
    assert sock.recv(2) == b"\5\0"
    sock.sendall(b"\5\1\0\1\x7f\0\0\1" + port.to_bytes(2))
    assert sock.recv(10, socket.MSG_WAITALL)[:2] == b"\5\0"
    digest_through(sock)
    process.send_signal(ended_by)
    out, err = process.communicate(timeout=SECONDS)
    code = 130 if ended_by == signal.SIGINT else 0
    assert (process.returncode, out, err.strip()) == (code, "", "")
    assert not ours.exists()


def test_connection_that_nobody_takes_ends_and_the_forward_goes_on(
    sshd: SshServer, start: Start, digests: tuple[int, Path]
) -> None:
    """A port of the guest at which nobody listens, by -L and -D; one of this machine, by -R. Each is one line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        free: int = server.getsockname()[1]
    nobody = f"127.0.0.1:{free}"
    options = [
        *("-L", f"0:127.0.0.1:{digests[0]}", "-L", f"0:{nobody}", "-L", "0:/no/socket"),
        *("-R", f"127.0.0.1:0:{nobody}", "-D", "127.0.0.1:0"),
    ]
    process, (digest, *failing) = start(*options, "alpha", forwards=5)
    said = []
    for line in failing:
        with socket.create_connection(("127.0.0.1", port_of(line))) as sock:
            sock.settimeout(SECONDS)
            if "SOCKS" in line:
                sock.sendall(b"\5\1\0" + b"\5\1\0\1\x7f\0\0\1" + free.to_bytes(2))
            while answer := sock.recv(100):
                assert "SOCKS" in line, answer
        assert process.stderr
        said.append(process.stderr.readline())
    digest_through(socket.create_connection(("127.0.0.1", port_of(digest))))
    targets = (f"{nobody} of alpha", "/no/socket of alpha", nobody, f"{nobody} of alpha")
    for target, line in zip(targets, said, strict=True):
        assert line.startswith(f"vsock: {target}: "), said
        assert "Errno" in line, said


def test_failures_that_are_many_are_told_in_part(sshd: SshServer, start: Start) -> None:
    """Fifty lines at once, and later one that counts the others; -q says nothing."""
    process, (line,) = start("-L", "0:/no/socket", "alpha")
    quiet, (silent,) = start("-q", "-L", "0:/no/socket", "alpha")

    def fail(times: int) -> None:
        for one in (line, silent):
            for _ in range(times):
                with socket.create_connection(("127.0.0.1", port_of(one))) as sock:
                    sock.settimeout(SECONDS)
                    assert sock.recv(10) == b""

    fail(60)
    assert process.stderr
    told = 0
    deadline = time.monotonic() + SECONDS
    while True:
        while not select.select([process.stderr], [], [], 0)[0]:
            assert time.monotonic() < deadline
            fail(1)
        said = process.stderr.readline()
        if re.fullmatch(r"vsock: \d+ lines are left out here\n", said):
            break
        assert said.startswith("vsock: /no/socket of alpha: ")
        told += 1
    assert told >= 50
    for one in (process, quiet):
        one.terminate()
    assert quiet.communicate(timeout=SECONDS)[1] == ""


def test_end_that_is_taken_is_one_line(sshd: SshServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Here and in the guest; the message says which side."""
    from vsock.cli.main import main

    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        assert main(["forward", "-L", f"127.0.0.1:{port}:a:1", "alpha"]) == 1
        here = capsys.readouterr().err
        assert (here.count("\n"), "in use" in here) == (1, True)
        assert main(["forward", "-R", f"127.0.0.1:{port}:a:1", "alpha"]) == 1
        there = capsys.readouterr().err
        assert there.startswith(f"vsock: sshd of alpha does not listen at 127.0.0.1:{port}: ")
        assert there.count("\n") == 1


def test_socket_that_is_there_is_not_replaced(
    sshd: SshServer,
    digests: tuple[int, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program listens there; nor is a file, or a link that leads nowhere."""
    from vsock.cli.main import main

    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for path in (digests[1], link):
        assert main(["forward", "-L", f"{path}:a:1", "alpha"]) == 1
        assert capsys.readouterr().err == (
            f"vsock: {path} exists: remove it if no program listens there\n"
        )
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(digests[1]))
    digest_through(sock)


def test_forward_ends_with_its_session(sshd: SshServer, start: Start, switch: Switch) -> None:
    """With an error that says so."""
    process, _ = start("-D", "127.0.0.1:0", "alpha")
    switch.remove_guest("alpha")
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, "vsock: the session with alpha ended\n")


def test_forwards_begin_again_when_the_guest_is_back(
    guest: Guest, start: Start, digests: tuple[int, Path], tmp_path: Path
) -> None:
    """At the ports that they had, one that was free and one of the guest among them."""
    key, public = generate_private_key("ssh-ed25519"), Identity.of_user().public_key()
    words = ("-L", f"127.0.0.1:0:127.0.0.1:{digests[0]}", "-L", f"{tmp_path}/s:{digests[1]}")
    back = ("-R", f"127.0.0.1:0:127.0.0.1:{digests[0]}")
    with SshServer(guest, public, key=key):
        process, lines = start("--reconnect", *words, *back, "alpha", forwards=3)
    assert process.stdout
    assert process.stderr
    assert process.stderr.readline() == (
        "vsock: the session with alpha ended; forwards begin again when the guest is back\n"
    )
    # An attempt that fails; nobody listens meanwhile.
    assert "alpha" in process.stderr.readline()
    with SshServer(guest, public, key=key):
        assert [process.stdout.readline() for _ in lines] == lines
        for line in (lines[0], lines[2]):
            port = re.fullmatch(r"forwarding 127\.0\.0\.1:(\d+) .*\n", line)
            assert port
            digest_through(socket.create_connection(("127.0.0.1", int(port[1]))))
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{tmp_path}/s")
        digest_through(sock)
        process.terminate()
        assert process.wait(SECONDS) == 0
    assert not (tmp_path / "s").exists()


def test_guest_with_another_host_key_is_not_waited_for(guest: Guest, start: Start) -> None:
    """Time does not change that."""
    public = Identity.of_user().public_key()
    with SshServer(guest, public):
        process, _ = start("--reconnect", "-D", "127.0.0.1:0", "alpha")
    with SshServer(guest, public):
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "host key" in err.splitlines()[-1]

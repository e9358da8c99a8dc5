"""`vsock forward`: the command around `vsock.forwarding`; curl is a client that does not know of it."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from vsock.guest import Guest

SECONDS = 20

Start = Callable[..., "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command; returns it with the end at which it listens."""
    running: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> "tuple[subprocess.Popen[str], str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", "forward", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("forwarding "), process.communicate(timeout=SECONDS)
        return process, line.split()[1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_client_of_a_tcp_port_reaches_the_guest(
    guest: Guest, start: Start, ended_by: signal.Signals
) -> None:
    """The port is the one that was free; a signal ends it without a traceback."""
    process, where = start("tcp:127.0.0.1:0", "alpha:80")
    host, _, port = where.removeprefix("tcp:").rpartition(":")
    with guest.create_server(80) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, host, port], stdout=subprocess.PIPE, text=True
        )
        connection, _ = server.accept()
        with connection:
            assert connection.recv(100) == b"question"
            assert connection.recv(100) == b""
            connection.sendall(b"answer")
        assert client.communicate(timeout=SECONDS)[0] == "answer\n"
    process.send_signal(ended_by)
    out, err = process.communicate(timeout=SECONDS)
    code = 130 if ended_by == signal.SIGINT else 0
    assert (process.returncode, out, err.strip()) == (code, "", "")


CLIENT = """
import socket, sys
with socket.create_connection(sys.argv[1:]) as sock:
    sock.sendall(b"question")
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(100).decode())
"""


def test_connection_that_fails_is_one_line(guest: Guest, start: Start) -> None:
    """The forward goes on; -q says nothing."""
    process, where = start("tcp:127.0.0.1:0", "alpha:9")
    host, _, port = where.removeprefix("tcp:").rpartition(":")
    assert subprocess.run(
        [sys.executable, "-c", CLIENT, host, port], capture_output=True, check=False
    ).stdout in (b"\n", b"")
    assert process.stderr
    line = process.stderr.readline()
    assert line.startswith("vsock: from ('127.0.0.1', ")
    assert line.endswith("alpha:9: nobody listens there\n") or "refused" in line


def test_end_that_is_taken_is_one_line(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason of the system."""
    from vsock.cli.main import main

    assert main(["forward", "tcp:192.0.2.1:80", "alpha:80"]) == 1
    assert capsys.readouterr().err.count("\n") == 1

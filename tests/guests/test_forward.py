"""`vsock forward` over the sshd of a stock Debian 13, and `vsock proxy` for its programs, which have no network."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tests.guests.conftest import DEBIAN

SECONDS = 60

pytestmark = pytest.mark.usefixtures("debian_user")

Start = Callable[..., list[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command that says where it listens; returns the lines."""
    running: list[subprocess.Popen[str]] = []

    def begin(*words: str, lines: int = 1) -> list[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        assert process.stdout
        return [process.stdout.readline() for _ in range(lines)]

    yield begin
    for process in running:
        process.terminate()
        process.communicate(timeout=SECONDS)


def port_of(word: str) -> int:
    """The port of an end."""
    return int(word.rpartition(":")[2])


def test_ports_are_forwarded_by_the_guests_sshd(start: Start) -> None:
    """A port of this host as a port of the guest, and from there back here, by a port and by SOCKS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)
        (back,) = start("forward", "-R", f"0:127.0.0.1:{server.getsockname()[1]}", DEBIAN)
        inside = port_of(back.split()[1])
        there, socks = start(
            *("forward", "-L", f"127.0.0.1:0:127.0.0.1:{inside}", "-D", "127.0.0.1:0", DEBIAN),
            lines=2,
        )
        with socket.create_connection(("127.0.0.1", port_of(there.split()[1])), SECONDS) as sock:
            answer_at_the_end(sock, server)
        with socket.create_connection(("127.0.0.1", port_of(socks.split()[1])), SECONDS) as sock:
            sock.sendall(b"\5\1\0")
            assert sock.recv(2, socket.MSG_WAITALL) == b"\5\0"
            sock.sendall(b"\5\1\0\3\x09127.0.0.1" + inside.to_bytes(2))
            assert sock.recv(10, socket.MSG_WAITALL)[:2] == b"\5\0"
            answer_at_the_end(sock, server)


def answer_at_the_end(client: socket.socket, server: socket.socket) -> None:
    """The answer comes after the end of the question."""
    connection, _ = server.accept()
    with connection:
        connection.settimeout(SECONDS)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert connection.recv(100, socket.MSG_WAITALL) == b"question"
        connection.sendall(b"answer")
        connection.shutdown(socket.SHUT_WR)
        assert client.recv(100, socket.MSG_WAITALL) == b"answer"


def in_guest(program: str) -> str:
    """The output of a program for bash in the guest."""
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", "exec", DEBIAN, "--", "bash", "-c", program],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


PROGRAM = """
exec 3<>/dev/tcp/127.0.0.1/{port}
printf 'GET http://127.0.0.1:{web}/{path} HTTP/1.0\\r\\n\\r\\n' >&3
cat <&3
"""


def test_guest_without_a_network_reaches_a_host_through_the_proxy(
    start: Start, tmp_path: Path
) -> None:
    """Its programs find the proxy at a port of their own machine, with nothing of ours in the guest."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "page").write_text("a page of the host\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        web = server.server_port
        (proxy,) = start("proxy", "--allow", f"127.0.0.1:{web} GET", "--listen", "tcp:127.0.0.1:0")
        port = port_of(proxy)
        (back,) = start("forward", "-R", f"0:127.0.0.1:{port}", DEBIAN)
        there = port_of(back.split()[1])
        said = in_guest(PROGRAM.format(port=there, web=web, path="page"))
        assert said.endswith("\r\n\r\na page of the host\n"), said
        said = in_guest(PROGRAM.format(port=there, web=1, path="page"))
        assert said.startswith("HTTP/1.1 403 GET to 127.0.0.1:1 is not allowed\r\n"), said
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

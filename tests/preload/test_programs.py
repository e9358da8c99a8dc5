"""Unmodified programs of Debian, on the host and, if both ends are such programs, in a userspace guest.

The same programs meet real guests in tests/guests/test_programs.py.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vsock
from vsock.errors import ConnectRefused
from vsock.guest import Guest

pytestmark = pytest.mark.timeout(120)

DEADLINE = 20


def in_guest(guest: Guest) -> dict[str, str]:
    """The environment of a program that is to be part of a userspace guest."""
    return {**os.environ, "VSOCK_RUNTIME_DIR": guest.transport.directory}


def until_connected(connect: Callable[[], Any]) -> Any:
    """The result of `connect`, as soon as a program listens."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return connect()
        except ConnectRefused:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def serve_once(listener: vsock.socket, answer: Callable[[bytes], bytes]) -> threading.Thread:
    """Accept once, read to the end, answer."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            connection.sendall(answer(got))

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def digest(data: bytes) -> bytes:
    """The answer of the other side, which shows that it received everything."""
    return hashlib.sha256(data).hexdigest().encode()


CLIENTS = [
    pytest.param(
        ["socat", "-t20", "-", "VSOCK-CONNECT:3:5000"],
        marks=pytest.mark.programs("socat"),
        id="socat",
    ),
    pytest.param(["ncat", "--vsock", "3", "5000"], marks=pytest.mark.programs("ncat"), id="ncat"),
]
SERVERS = [
    pytest.param(
        ["socat", "VSOCK-LISTEN:5000,fork", "EXEC:cat"],
        marks=pytest.mark.programs("socat"),
        id="socat",
    ),
    pytest.param(
        ["ncat", "--vsock", "-l", "5000", "--keep-open", "--exec", shutil.which("cat") or ""],
        marks=pytest.mark.programs("ncat"),
        id="ncat",
    ),
]


@pytest.mark.parametrize("command", CLIENTS)
def test_client_sends_all_and_reads_the_answer(
    guest: Guest, start: Any, tmp_path: Path, command: list[str]
) -> None:
    """Three megabytes from its standard input, the half-close, and the answer."""
    data = os.urandom(3 << 20)
    (tmp_path / "data").write_bytes(data)
    with guest.create_server((vsock.CID_ANY, 5000)) as listener, (tmp_path / "data").open() as file:
        thread = serve_once(listener, digest)
        program = start(*command, stdin=file)
        out, err = program.communicate(timeout=DEADLINE)
        thread.join()
    assert (program.returncode, out) == (0, digest(data).decode()), err


@pytest.mark.parametrize("command", CLIENTS)
def test_client_that_is_refused_says_so(guest: Guest, start: Any, command: list[str]) -> None:
    """ECONNRESET, as in the kernel."""
    program = start(*command)
    _, err = program.communicate(timeout=DEADLINE)
    assert program.returncode != 0
    assert "reset by peer" in err


@pytest.mark.parametrize("command", SERVERS)
def test_server_gives_each_connection_to_a_program(
    guest: Guest, start: Any, command: list[str]
) -> None:
    """It accepts, forks and runs another program; ten connections are alive at the same time."""
    start(*command)
    # socat lets six connections wait while it forks; refused clients retry.
    first, *others = [
        until_connected(lambda: guest.create_connection((2, 5000))) for _ in range(10)
    ]
    for number, connection in enumerate([first, *others]):
        connection.sendall(b"%d" % number * 10_000)
    for number, connection in enumerate([first, *others]):
        assert connection.recv(10_000, socket.MSG_WAITALL) == b"%d" % number * 10_000
        connection.close()


@pytest.mark.programs("socat")
def test_server_hands_the_half_close_on(guest: Guest, start: Any) -> None:
    """The program behind socat reads to the end of the data, then answers."""
    data = os.urandom(1 << 20)
    start("socat", "VSOCK-LISTEN:5000", "EXEC:sha256sum")
    with until_connected(lambda: guest.create_connection((2, 5000))) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").read().split()[0] == digest(data)


@pytest.mark.programs("nbdkit", "nbdinfo", "nbdcopy")
@pytest.mark.parametrize("server_is", ["host", "guest"])
def test_block_device_is_copied_between_host_and_guest(
    guest: Guest, start: Any, run: Any, tmp_path: Path, server_is: str
) -> None:
    """nbdkit serves a file; nbdinfo and nbdcopy, which connect four times at once, read it."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.write_bytes(os.urandom(8 << 20))
    places = {"host": {**os.environ}, "guest": in_guest(guest)}
    cid = {"host": 2, "guest": 3}[server_is]
    where = guest.transport if server_is == "host" else None
    server = places.pop(server_is)
    (client,) = places.values()
    start("nbdkit", "-f", "--vsock", "--port", "10809", "file", str(disk), env=server)
    source = f"nbd+vsock://{cid}:10809/"
    until_connected(lambda: vsock.create_connection((cid, 10809), transport=where)).close()
    assert json.loads(run("nbdinfo", "--json", source, env=client))["exports"][0][
        "export-size"
    ] == (8 << 20)
    run("nbdcopy", "--connections=4", source, str(copy), env=client)
    assert copy.read_bytes() == disk.read_bytes()


@pytest.mark.programs("strace", "socat")
def test_debian_program_makes_no_kernel_socket(guest: Guest, start: Any, tmp_path: Path) -> None:
    """socat uses AF_VSOCK, but creates no socket of the kernel's."""
    log = tmp_path / "calls"
    with guest.create_server((vsock.CID_ANY, 5000)) as listener:
        thread = serve_once(listener, lambda data: data[::-1])
        program = start(
            *("strace", "-f", "-o", str(log), "-e", "trace=socket,connect"),
            *("socat", "-t20", "-", "VSOCK-CONNECT:3:5000"),
            stdin=subprocess.PIPE,
        )
        out, _ = program.communicate("drawer", timeout=DEADLINE)
        thread.join()
    assert out == "reward"
    assert "AF_UNIX" in log.read_text()
    assert "VSOCK" not in log.read_text()

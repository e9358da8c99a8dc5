"""`vsock cat`: bytes in both directions, and the end of each direction.

The connections are plain Unix sockets (`unix:PATH`), which behave as the switch's streams do.
"""

import hashlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import vsock
from vsock.cli.main import main

DEADLINE = 20


@pytest.fixture
def listener(runtime_dir: Path) -> Iterator[socket.socket]:
    """A listening Unix socket at `peer` in the runtime directory."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(runtime_dir / "peer"))
        made.listen()
        made.settimeout(DEADLINE)
        yield made


def cat(*arguments: str) -> "subprocess.Popen[bytes]":
    """A `vsock cat` process with pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "cat", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def accepted(listener: socket.socket) -> socket.socket:
    """The next connection, with a deadline on everything."""
    connection, _ = listener.accept()
    connection.settimeout(DEADLINE)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """All data up to the end."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_end_of_input_ends_one_direction_only(listener: socket.socket) -> None:
    """The peer's answer after the end of input is still printed."""
    with cat(f"unix:{listener.getsockname()}") as process, accepted(listener) as peer:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"question")
        process.stdin.close()
        assert read_all(peer) == b"question"
        peer.sendall(b"answer")
        peer.close()
        assert process.stdout.read() == b"answer"
        assert process.wait(DEADLINE) == 0


def test_end_of_peers_sending_does_not_stop_ours(listener: socket.socket) -> None:
    """A peer that has shut its sending direction down may still read."""
    with cat(f"unix:{listener.getsockname()}") as process, accepted(listener) as peer:
        assert process.stdin
        assert process.stdout
        peer.sendall(b"all I say")
        peer.shutdown(socket.SHUT_WR)
        assert process.stdout.read(9) == b"all I say"
        process.stdin.write(b"still here")
        process.stdin.close()
        assert read_all(peer) == b"still here"
        assert process.wait(DEADLINE) == 0


def test_peer_that_is_gone_ends_cat_with_input_open(listener: socket.socket) -> None:
    """The command does not wait for input that it could not send."""
    with cat(f"unix:{listener.getsockname()}") as process:
        peer = accepted(listener)
        peer.sendall(b"bye")
        peer.close()
        assert process.wait(DEADLINE) == 0
        assert process.stdout
        assert process.stdout.read() == b"bye"


def test_reader_that_leaves_ends_cat(listener: socket.socket) -> None:
    """As in `vsock cat ... | head -1`: without a message, and with a failure status."""
    with cat(f"unix:{listener.getsockname()}") as process, accepted(listener) as peer:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        peer.sendall(b"unwanted")
        assert process.wait(DEADLINE) == 1
        assert process.stderr.read() == b""


def test_many_bytes_both_ways_at_once_arrive_whole(
    listener: socket.socket, runtime_dir: Path
) -> None:
    """Neither direction waits for the other, however large both are."""
    data = random.Random(7).randbytes(8 << 20)
    (runtime_dir / "in").write_bytes(data)
    with (
        (runtime_dir / "in").open("rb") as source,
        (runtime_dir / "out").open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", "cat", f"unix:{listener.getsockname()}"],
            stdin=source,
            stdout=sink,
        ) as process,
        accepted(listener) as peer,
    ):
        while piece := peer.recv(65536):
            peer.sendall(piece)
        peer.shutdown(socket.SHUT_WR)
        assert process.wait(DEADLINE) == 0
    came = hashlib.sha256((runtime_dir / "out").read_bytes())
    assert came.digest() == hashlib.sha256(data).digest()


def listening(runtime_dir: Path, *options: str) -> "subprocess.Popen[bytes]":
    """A `vsock cat -l -v` that has printed that it listens."""
    process = cat("-v", "-l", *options, f"unix:{runtime_dir / 'cat'}")
    assert process.stderr
    assert process.stderr.readline().startswith(b"listening on ")
    return process


def connected(runtime_dir: Path) -> socket.socket:
    """A connection to the listening `vsock cat`."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE)
    connection.connect(str(runtime_dir / "cat"))
    return connection


def test_listening_cat_serves_one_connection(runtime_dir: Path) -> None:
    """It copies in both directions, as a connecting one does."""
    with listening(runtime_dir) as process, connected(runtime_dir) as peer:
        peer.sendall(b"in")
        peer.shutdown(socket.SHUT_WR)
        output, _ = process.communicate(b"out", DEADLINE)
        assert (output, read_all(peer), process.returncode) == (b"in", b"out", 0)


def test_exec_has_the_connection_as_input_and_output(runtime_dir: Path) -> None:
    """A filter becomes a service."""
    with listening(runtime_dir, "--exec", "tr a-z A-Z") as process, connected(runtime_dir) as peer:
        peer.sendall(b"shout")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"SHOUT"
        assert process.wait(DEADLINE) == 0


def test_exec_that_fails_is_exit_code_1(runtime_dir: Path) -> None:
    """A script can tell failure from success."""
    with listening(runtime_dir, "--exec", "false") as process, connected(runtime_dir) as peer:
        assert read_all(peer) == b""
        assert process.wait(DEADLINE) == 1


def test_exec_of_nothing_is_one_line(runtime_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """N23: the command fails at once, and not at the first connection."""
    assert main(["cat", "-l", f"unix:{runtime_dir}/sock", "--exec", "no-such-program"]) == 1
    assert capsys.readouterr().err == "vsock: cannot run 'no-such-program': no such program\n"
    assert not (runtime_dir / "sock").exists()


def test_child_of_a_kept_cat_is_reaped_when_it_ends(runtime_dir: Path) -> None:
    """F9: no zombie stays until the next connection."""
    with listening(runtime_dir, "-k", "--exec", "cat") as process:
        with connected(runtime_dir) as caller:
            caller.sendall(b"one")
            assert caller.recv(3) == b"one"
            (child,) = children(process.pid)
        deadline = time.monotonic() + DEADLINE
        while children(process.pid):
            assert time.monotonic() < deadline, f"{child} is left"
            signal.sigtimedwait([], 0.01)
        process.terminate()


def children(pid: int) -> list[str]:
    """The child processes of all threads of `pid`, zombies included."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = []
    for task in tasks:
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            found += (task / "children").read_text().split()
    return found


def test_kept_cat_serves_connections_side_by_side(runtime_dir: Path) -> None:
    """The second does not wait for the first to end."""
    with listening(runtime_dir, "-k", "--exec", "cat") as process:
        with connected(runtime_dir) as first, connected(runtime_dir) as second:
            second.sendall(b"two")
            second.shutdown(socket.SHUT_WR)
            assert read_all(second) == b"two"
            first.sendall(b"one")
            first.shutdown(socket.SHUT_WR)
            assert read_all(first) == b"one"
        process.terminate()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "3:5000",
            "the CID is not this machine's: give only the port to listen on all of its CIDs",
        ),
        ("5000", "`vsock ls` shows the process"),
    ],
)
def test_listening_where_one_cannot_says_what_to_do(
    address: str, said: str, runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has a hint besides the errno."""
    with vsock.Switch({"alpha": 3}, runtime_dir=runtime_dir), vsock.create_server(5000):
        assert main(["cat", "-l", address]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("vsock: bind ")
    assert captured.endswith(f"; {said}\n")


def served(port: int) -> bool:
    """Whether a `cat -l -k --exec 'echo served'` answers at the port."""
    try:
        with vsock.create_connection((vsock.CID_LOCAL, port)) as sock:
            return sock.makefile("rb").read() == b"served\n"
    except vsock.ConnectRefused:
        return False


def test_kept_cat_comes_back_with_the_next_switch(runtime_dir: Path) -> None:
    """With --reconnect; without it `vsock cat` ends with its switch (A5b)."""
    with vsock.Switch(runtime_dir=runtime_dir):
        lasting = cat("-l", "-k", "--reconnect", "5000", "--exec", "echo served")
        ending = cat("-l", "-k", "5001", "--exec", "echo served")
        deadline = time.monotonic() + DEADLINE
        while not (served(5000) and served(5001)):
            assert time.monotonic() < deadline
    with ending:
        _, complaint = ending.communicate(timeout=DEADLINE)
        assert (ending.returncode, complaint) == (1, b"vsock: accept: the switch went away\n")
    with lasting, vsock.Switch(runtime_dir=runtime_dir):
        deadline = time.monotonic() + DEADLINE
        while not served(5000):
            assert time.monotonic() < deadline
        lasting.terminate()
        lasting.communicate(timeout=DEADLINE)


def test_reconnect_is_for_listeners(capsys: pytest.CaptureFixture[str]) -> None:
    """With a connecting `vsock cat` it is an error."""
    assert main(["cat", "--reconnect", "local:5000"]) == 2
    assert "--reconnect is for -l" in capsys.readouterr().err

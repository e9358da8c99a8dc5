"""Lines on a hybrid socket that are none: the end, counted, and nothing stays."""

import contextlib
import os
import socket

import pytest
from tests.bad_input.lab import DEADLINE, ECHO, Lab

GOOD = f"CONNECT {ECHO}\n".encode()


def dial(lab: Lab) -> socket.socket:
    """A program on the hybrid socket."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(str(lab.directory / "guests/alpha.vsock"))
    return client


def answer(client: socket.socket) -> str:
    """The line that comes back; empty at the end."""
    return client.makefile("r").readline()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"\r\n",
        b" \n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT 5000 5000\n",
        b"CONNECT5000\n",
        b"LISTEN 5000\n",
        b"OK 5000\n",
        b"GET / HTTP/1.1\r\nHost: host\r\n\r\n",
        b"CONNECT -1\n",
        b"CONNECT +5000\n",
        b"CONNECT 0x1388\n",
        b"CONNECT 5000.0\n",
        b"CONNECT 5_000\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 99999999999999999999\n",
        b"CONNECT \xd9\xa5\n",
        b"CONNECT 5000\0\n",
        b"\0\n",
        b"\xff\xfe\n",
        b"C" * 64,
        b"CONNECT " + b"0" * 56,
        b"CONNECT" + b" " * 60 + b"5000\n",
        b"x" * 100_000,
    ],
)
def test_line_that_is_none_gets_the_end(lab: Lab, line: bytes) -> None:
    """No word, no reset: the end. And it is counted, with the process that said it."""
    before = lab.bad_requests()
    with dial(lab) as client:
        # The switch need not read all of a long one before it says so.
        with contextlib.suppress(BrokenPipeError):
            client.sendall(line)
        assert client.recv(100) == b""
        assert lab.bad_requests() == before + 1


def test_log_says_whose_line_it_was(lab: Lab) -> None:
    """With the guest's CID."""

    def say_it() -> None:
        with dial(lab) as client:
            client.sendall(b"nonsense\n")
            assert client.recv(100) == b""

    assert "3" in lab.wait_for_line(f"hybrid line of pid {os.getpid()}: not CONNECT", say_it)


@pytest.mark.parametrize("port", ["1", "1023", "4294967294", "4294967295"])
def test_port_where_nobody_listens_gets_the_end(lab: Lab, port: str) -> None:
    """Also with bytes right behind the line, which nobody takes."""
    before = lab.bad_requests()
    for behind in ("", "hello" * 1000):
        with dial(lab) as client:
            client.sendall(f"CONNECT {port}\n{behind}".encode())
            assert client.recv(100) == b""
    assert lab.bad_requests() == before


def test_line_cut_at_every_byte(lab: Lab) -> None:
    """Whether it closes or only says no more."""
    for length in range(len(GOOD)):
        with dial(lab) as client:
            client.sendall(GOOD[:length])
        with dial(lab) as client:
            client.sendall(GOOD[:length])
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""


@pytest.mark.parametrize("line", [GOOD, b"connect 5000\r\n", b"  CONNECT\t5000  \n"])
def test_line_byte_by_byte_is_a_line(lab: Lab, line: bytes) -> None:
    """As other VMMs take it."""
    with dial(lab) as client:
        for byte in line:
            client.sendall(bytes([byte]))
        assert answer(client).startswith("OK ")
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_descriptors_with_a_line_are_closed(lab: Lab) -> None:
    """They go nowhere."""
    left, right = socket.socketpair()
    with left, dial(lab) as client:
        socket.send_fds(client, [GOOD], [right.fileno()] * 50)
        right.close()
        assert answer(client).startswith("OK ")
        left.settimeout(DEADLINE)
        assert left.recv(1) == b""


def test_descriptor_with_part_of_a_line_is_no_line(lab: Lab) -> None:
    """Behind it the kernel shows nothing, so the rest would be waited for in vain."""
    left, right = socket.socketpair()
    with left, dial(lab) as client:
        socket.send_fds(client, [GOOD[:4]], [right.fileno()])
        right.close()
        with contextlib.suppress(BrokenPipeError):  # it may have been ended already
            client.sendall(GOOD[4:])
        assert client.recv(100) == b""
        left.settimeout(DEADLINE)
        assert left.recv(1) == b""

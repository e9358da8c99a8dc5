"""Invalid lines on a hybrid socket: the switch closes the connection, counts it, and keeps nothing."""

import contextlib
import os
import socket

import pytest
from tests.bad_input.lab import DEADLINE, ECHO, Lab
from tests.bad_input.raw import send_passing

GOOD = f"CONNECT {ECHO}\n".encode()


def dial(lab: Lab) -> socket.socket:
    """A program on the hybrid socket."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(DEADLINE)
    client.connect(str(lab.directory / "guests/alpha.vsock"))
    return client


def answer(client: socket.socket) -> str:
    """The line of the answer; empty at the end of the data."""
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
    """The program reads the end of the data, without an answer or a reset, and the log names its process."""
    before = lab.bad_requests()
    with dial(lab) as client:
        # The switch may close before it has read all of a long line.
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
    """Also with bytes directly after the line, which no program reads."""
    before = lab.bad_requests()
    for behind in ("", "hello" * 1000):
        with dial(lab) as client:
            client.sendall(f"CONNECT {port}\n{behind}".encode())
            assert client.recv(100) == b""
    assert lab.bad_requests() == before


def test_line_cut_at_every_byte(lab: Lab) -> None:
    """Also if the program closes, or shuts its sending direction down."""
    for length in range(len(GOOD)):
        with dial(lab) as client:
            client.sendall(GOOD[:length])
        with dial(lab) as client:
            client.sendall(GOOD[:length])
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b""


@pytest.mark.parametrize("line", [GOOD, b"connect 5000\r\n", b"  CONNECT\t5000  \n"])
def test_line_byte_by_byte_is_a_line(lab: Lab, line: bytes) -> None:
    """As in other VMMs."""
    with dial(lab) as client:
        for byte in line:
            client.sendall(bytes([byte]))
        assert answer(client).startswith("OK ")
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_descriptors_with_a_line_are_closed(lab: Lab) -> None:
    """The switch closes or refuses them."""
    left, right = socket.socketpair()
    with left, dial(lab) as client:
        send_passing(client, GOOD, [right.fileno()] * 50)
        right.close()
        assert answer(client).startswith("OK ")
        left.settimeout(DEADLINE)
        assert left.recv(1) == b""


def test_descriptor_with_part_of_a_line_is_no_line(lab: Lab) -> None:
    """MSG_PEEK does not look past a descriptor: a switch that does not refuse them would wait for the rest for ever."""
    left, right = socket.socketpair()
    with left, dial(lab) as client:
        is_passed = send_passing(client, GOOD[:4], [right.fileno()])
        right.close()
        with contextlib.suppress(BrokenPipeError):  # the switch may have closed it already
            client.sendall(GOOD[4:])
        if is_passed:
            assert client.recv(100) == b""
        else:
            assert answer(client).startswith("OK ")
        left.settimeout(DEADLINE)
        assert left.recv(1) == b""

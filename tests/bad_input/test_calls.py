"""Calls with invalid arguments: each fails with the kernel's errno and does not change the socket.

The rules are in sections 1, 2 and 10 of the kernel semantics, and `make oracle` confirms them on kernels; here every value is
tried. First in a program under ``vsock run``, then with `vsock.socket`, where Python itself rejects values of wrong types.
"""

import errno
import json
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bad_input.lab import ECHO, Lab
from tests.bad_input.sweeps import BITS, INT_OPTIONS, LENGTHS, LONGER_OPTIONS, outcome

import vsock
from vsock import AddressError

Said = dict[str, Any]
AF_VSOCK = 40
SIZES = {0: 8, 1: 8, 2: 8, 6: 16, 8: 16}
"""Options of the level AF_VSOCK, and the bytes that each needs."""
OOB, ERRQUEUE = socket.MSG_OOB, 0x2000
FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


@pytest.fixture(scope="module")
def swept(running_lab: Lab) -> Said:
    """The results of all the calls in a program under `vsock run`."""
    import os
    import subprocess

    command = [
        sys.executable,
        "-m",
        "vsock.cli",
        "run",
        "--runtime-dir",
        str(running_lab.directory),
        "--",
    ]
    ended = subprocess.run(
        [*command, sys.executable, "-m", "tests.bad_input.sweeps"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )
    assert ended.returncode == 0, ended.stderr
    said: Said = json.loads(ended.stdout)
    return said


@pytest.mark.parametrize(("function", "good"), [("bind", "ok"), ("connect", "ECONNRESET")])
def test_address_that_is_none(swept: Said, function: str, good: str) -> None:
    """Too short, too long, of another family, or with an unknown flag: EINVAL; an invalid pointer: EFAULT."""
    said = swept["addresses"]
    expected = {str(n): good if 16 <= n <= 128 else "EINVAL" for n in LENGTHS}
    assert said[f"{function} lengths"] == expected
    assert set(said[f"{function} flags"]) == {"EINVAL"}
    assert set(said[f"{function} families"]) == {"EINVAL"}
    assert said[f"{function} nowhere"] == "EFAULT"
    assert said[f"{function} at last"] == good


@pytest.mark.parametrize("call", ["set", "get"])
def test_option_of_every_number_and_length(swept: Said, call: str) -> None:
    """A too short value is EINVAL, an unknown option ENOPROTOOPT."""
    for number, said in swept["vsock_options"].items():
        size = SIZES.get(int(number))
        for length, got in said[call].items():
            if int(length) < 0 and call == "set":
                assert got == "EINVAL", (number, length)
            elif size is None:
                assert got == "ENOPROTOOPT", (number, length)
            else:
                assert got == ("ok" if int(length) >= size else "EINVAL"), (number, length)


def test_connect_timeout_that_is_no_time(swept: Said) -> None:
    """Each is ERANGE, except the last, which is valid."""
    for said in swept["timeouts"].values():
        assert said == ["ERANGE"] * 6 + ["ok"]


def test_option_of_other_levels(swept: Said) -> None:
    """Integers need four bytes; other levels are unknown; SO_RCVLOWAT is at most the buffer size."""
    said = swept["socket_options"]
    assert said["short"] == {str(name): ["EINVAL"] * 5 for name in INT_OPTIONS}
    longer = {str(name): ["EINVAL"] * (size + 1) for name, size in LONGER_OPTIONS.items()}
    assert said["longer"] == longer
    assert said["nowhere"] == ["EFAULT"] * len(INT_OPTIONS)
    assert set(said["levels"]) == {"ENOPROTOOPT"}
    assert said["low water"] == ["EINVAL"] * 4 + ["ok"] * 2


def test_type_flag_and_protocol_that_are_none(swept: Said) -> None:
    """Types from 11 on are EINVAL, other unknown types ESOCKTNOSUPPORT; then protocols."""
    said = swept["creation"]
    there_not = "ESOCKTNOSUPPORT"
    assert said["types"] == [
        "EINVAL", there_not, "ok", "ENODEV", there_not, there_not, "ok", *[there_not] * 5, *["EINVAL"] * 5,
    ]  # fmt: skip
    expected = {str(bit): "ok" if bit & FLAGS else "EINVAL" for bit in BITS if bit > 8}
    assert said["flags"] == expected
    assert said["protocols"] == ["EPROTONOSUPPORT"] * 7 + ["ok"] * 2


def test_every_flag_of_the_data_calls(swept: Said) -> None:
    """MSG_OOB fails, the error queue is empty, and all other flags are accepted."""
    said = swept["data_flags"]
    assert said["recv unconnected"] == {
        str(bit): "EAGAIN" if bit == ERRQUEUE else "ENOTCONN" for bit in BITS
    }
    assert said["send unconnected"] == {
        str(bit): "EOPNOTSUPP" if bit == OOB else "ENOTCONN" for bit in BITS
    }
    assert said["recv"] == {str(bit): "EOPNOTSUPP" if bit == OOB else "EAGAIN" for bit in BITS}
    assert said["send"] == {str(bit): "EOPNOTSUPP" if bit == OOB else "ok" for bit in BITS}
    assert said["came back"] == 0
    expected = {"1": "EISCONN", "2": "EISCONN", "15": "EISCONN", "16": "EISCONN", "128": "EISCONN"}
    assert said["address"] == {**expected, "129": "EINVAL", str(0xFFFFFFFF): "EINVAL", "0": "ok"}


def test_flags_of_accept_backlogs_and_directions(swept: Said) -> None:
    """Unknown flags of accept4 are EINVAL, every backlog is valid, and shutdown has three directions."""
    said = swept["rest"]
    assert set(said["not listening"].values()) == {"EINVAL"}
    assert said["accept4"] == {
        str(bit): "EINVAL" if bit & ~FLAGS else "EAGAIN" for bit in (0, *BITS)
    }
    assert said["listen"] == ["ok"] * 4
    assert said["unbound"] == "EINVAL"
    assert said["shutdown"] == ["EINVAL"] * 2 + ["ENOTCONN"] * 3 + ["EINVAL"] * 3


# vsock.socket

NO_ADDRESSES = [
    None, 5000, 2.5, True, b"3:5000", "", ":", "3", "3:", ":5000", "3:x", "3:-1", "3:4294967296", "4294967296:1",
    "3:5000:6000", " 3:5000", "3:5000 ", "tcp://3:5000", "unix:/x", "hvsock:///x:1", "kernel:3:5000", "no one:1", "3\0:1",
    (), (3,), (3, 5000, 0), [3, 5000], ("3", 5000), (3, "5000"), (3.0, 5000), (None, None), (True, 5000),
    (-2, 5000), (3, -2), (1 << 32, 5000), (3, 1 << 32), (1 << 64, 1 << 64),
]  # fmt: skip


@pytest.mark.parametrize("address", NO_ADDRESSES, ids=repr)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_what_is_no_address_is_said_to_be_none(lab: Lab, kind: int, address: Any) -> None:
    """Every call that takes an address raises AddressError with the reason, and the socket can still be used."""
    with vsock.socket(kind) as sock:
        for verb in (sock.bind, sock.connect, sock.connect_ex):
            with pytest.raises(AddressError) as caught:
                verb(address)
            assert str(caught.value)
        if kind == socket.SOCK_DGRAM:
            with pytest.raises(AddressError):
                sock.sendto(b"x", address)
        assert sock.getsockname() == (vsock.CID_ANY, vsock.PORT_ANY)
        sock.bind((vsock.CID_ANY, vsock.PORT_ANY))


def test_every_option_and_length_of_a_socket(lab: Lab) -> None:
    """As under `vsock run`; for -1 and values that are no numbers Python raises its own errors."""
    with vsock.socket() as sock:
        for number in range(-1, 12):
            size = SIZES.get(number)
            for length in (*range(25), 64):
                good = "ok" if length >= (size or 0) else "EINVAL"
                expected = "ENOPROTOOPT" if size is None else good
                said = outcome(sock.setsockopt, AF_VSOCK, number, bytes(length))
                assert said == expected, (number, length)
                if length:
                    assert outcome(sock.getsockopt, AF_VSOCK, number, length) == expected
        for value in ("8", 2.5, [8]):
            with pytest.raises(TypeError):
                sock.setsockopt(AF_VSOCK, 0, value)
        for level in (-1, 0, 6, 39, 41, 287):
            assert outcome(sock.setsockopt, level, 1, bytes(8)) == "ENOPROTOOPT"
            assert outcome(sock.getsockopt, level, 1, 8) == "ENOPROTOOPT"
        for name in (2, 6, 9, 10, 15, 18, 60):
            for length in range(4):
                said = outcome(sock.setsockopt, socket.SOL_SOCKET, name, bytes(length))
                assert said == "EINVAL", (name, length)


def _of(call: Callable[..., object], *arguments: Any) -> str:
    return outcome(call, *arguments)


def test_every_type_flag_and_protocol_of_a_socket(lab: Lab) -> None:
    """As under `vsock run`, except that there are datagrams."""

    def make(kind: int, protocol: int = 0) -> str:
        return _of(lambda: vsock.socket(kind, protocol).close())

    there = {socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET}
    for kind in range(16):
        other = "ESOCKTNOSUPPORT" if kind < 11 else "EINVAL"
        assert make(kind) == ("ok" if kind in there else other), kind
    for bit in BITS[4:]:
        assert make(socket.SOCK_STREAM | bit) == ("ok" if bit & FLAGS else "EINVAL"), bit
    for protocol in (-1, 1, 6, 39, 41, 255):
        assert make(socket.SOCK_STREAM, protocol) == "EPROTONOSUPPORT"


def test_every_flag_of_the_data_calls_of_a_socket(lab: Lab) -> None:
    """As under `vsock run`."""
    with vsock.socket() as sock, vsock.create_connection((3, ECHO)) as talking:
        for bit in BITS:
            assert _of(sock.recv, 1, bit) == ("EAGAIN" if bit == ERRQUEUE else "ENOTCONN")
            assert _of(sock.send, b"x", bit) == ("EOPNOTSUPP" if bit == OOB else "ENOTCONN")
            flags = bit | socket.MSG_DONTWAIT
            assert _of(talking.recv, 1, flags) == ("EOPNOTSUPP" if bit == OOB else "EAGAIN")
        for bit in BITS:
            expected = "EOPNOTSUPP" if bit == OOB else "ok"
            assert _of(talking.send, b"x", bit | socket.MSG_DONTWAIT) == expected
        talking.shutdown(socket.SHUT_WR)
        with talking.makefile("rb") as file:
            assert file.read() == b"x" * (len(BITS) - 1)
        for how in (-2, -1, 3, 4, 1 << 20):
            assert _of(talking.shutdown, how) == "EINVAL"


def test_connect_timeout_of_a_socket_that_is_no_time(lab: Lab) -> None:
    """As an option it is ERANGE; the attribute raises a Python error."""
    with vsock.socket() as sock:
        for seconds, micro in ((-1, 0), (-(2**63), 0), (2**63 - 1, 0), (0, 10**6), (0, 2**63 - 1)):
            value = struct.pack("=qq", seconds, micro)
            with pytest.raises(OSError, match="range") as caught:
                sock.setsockopt(AF_VSOCK, 6, value)
            assert caught.value.errno == errno.ERANGE
        for bad in (-1, -1e-9, float("nan"), float("inf")):
            with pytest.raises(vsock.UsageError, match="timeout"):
                sock.connect_timeout = bad
        assert sock.connect_timeout == 2

"""The messages and decisions of `vsock` as a client are those of the crate `vsock-client`, byte by byte.

The node and the preload library use the crate; Python has a copy of its own. `crates/client/tests/vectors.json` is written
by the crate's tests. Messages, and what stands behind them, are compared directly; all else through sockets, as programs
use them: the state is written to a plain Unix socket, of which `socket.from_fd` makes a VSOCK socket.
"""

import contextlib
import errno
import json
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vsock
from vsock._client import INHERITED_SIZE, Reply, Request, held
from vsock._socket.options import VsockOptions

VECTORS = json.loads(
    (Path(__file__).parent.parent / "crates/client/tests/vectors.json").read_text(encoding="utf-8")
)
SOCKETS = {row["name"]: row for row in VECTORS["sockets"] if row["name"] != "device"}
SOL = socket.SOL_SOCKET
AF_VSOCK = 40
SO_MAX_PACING_RATE = 47
SO_INCOMING_CPU = 49
SO_ZEROCOPY = 60
MSG_ERRQUEUE = 0x2000
PEER = (3, 5000)
BUFFER = 262144
ENOUGH = 64
"""Bytes of room for any option."""


def fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a message, without its bytes."""
    return {name: value for name, value in row.items() if name != "bytes"}


@pytest.mark.parametrize("row", VECTORS["requests"], ids=lambda row: f"op{row['op']}")
def test_request_is_the_same_bytes(row):
    """In both directions, though only a node reads them."""
    request = Request(**fields(row))
    assert request.encode().hex() == row["bytes"]
    assert Request.decode(bytes.fromhex(row["bytes"])) == request


@pytest.mark.parametrize("row", VECTORS["held"], ids=lambda row: str(row["name"]))
def test_what_stands_behind_a_held_connect_is_the_same(row):
    """The cookie, the name of a guest, and padding."""
    name = None if row["name"] is None else row["name"].encode()
    assert held(row["cookie"], name) == bytes.fromhex(row["bytes"]) + bytes(row["padding"])


@pytest.mark.parametrize("row", VECTORS["replies"], ids=lambda row: f"op{row['op']}")
def test_reply_is_the_same_bytes(row):
    """In both directions, though only a node writes them."""
    reply = Reply(**fields(row))
    assert Reply.decode(bytes.fromhex(row["bytes"])) == reply
    assert reply.encode().hex() == row["bytes"]


# The state in a socket


def word_of(sock: socket.socket) -> str:
    """The 64 bits of state in a socket."""
    with socket.socket(fileno=os.dup(sock.fileno())) as plain:
        return f"{int.from_bytes(plain.getsockopt(SOL, SO_MAX_PACING_RATE, 8), 'little'):016x}"


@contextlib.contextmanager
def made(name: str) -> Iterator[vsock.socket]:
    """The socket `name` of the vectors; a connection has data to receive."""
    row = SOCKETS[name]
    kind = socket.SOCK_SEQPACKET if "MESSAGES" in row["flags"] else socket.SOCK_STREAM
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.setsockopt(SOL, SO_MAX_PACING_RATE, struct.pack("=Q", int(row["word"], 16)))
    ours.setsockopt(SOL, SO_INCOMING_CPU, struct.pack("=I", PEER[1]))
    if row["state"] == "CONNECTING":
        # An unread request keeps the socket from being writable.
        ours.setsockopt(SOL, socket.SO_SNDBUF, 1)
        ours.send(bytes(2048))
    if "STREAM" in row["flags"]:
        theirs.send(b"received")
    for flag, how in (("NO_RECEIVING", socket.SHUT_RD), ("NO_SENDING", socket.SHUT_WR)):
        if flag in row["flags"]:
            ours.shutdown(how)
    with theirs, vsock.socket.from_fd(ours.detach()) as sock:
        yield sock


def test_states_and_flags_have_the_same_names():
    """The names of the vectors have the numbers of the specification."""
    assert list(VECTORS["states"].values()) == list(range(7))
    assert list(VECTORS["flags"].values()) == [1 << bit for bit in range(11)]


def test_open_device_is_no_socket():
    """Only the preload library opens /dev/vsock; its state there is no state of a socket."""
    (word,) = (row["word"] for row in VECTORS["sockets"] if row["name"] == "device")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.setsockopt(SOL, SO_MAX_PACING_RATE, struct.pack("=Q", int(word, 16)))
        with pytest.raises(vsock.UsageError):
            vsock.socket.from_fd(plain.fileno())


@pytest.mark.usefixtures("runtime_dir")
def test_new_socket_keeps_the_word_of_a_new_socket():
    """The word contains only the mark."""
    with vsock.socket() as sock:
        assert word_of(sock) == SOCKETS["fresh"]["word"]


@pytest.mark.parametrize("row", VECTORS["names"], ids=lambda row: str(row["cid"]))
def test_name_is_read_as_an_address(row):
    """The abstract name of the Unix socket."""
    with socket.socket(socket.AF_UNIX) as plain:
        word = SOCKETS["bound"]["word"]
        plain.setsockopt(SOL, SO_MAX_PACING_RATE, struct.pack("=Q", int(word, 16)))
        plain.bind(bytes.fromhex(row["name"]))
        with vsock.socket.from_fd(os.dup(plain.fileno())) as sock:
            assert sock.getsockname() == (row["cid"], row["port"])


def test_name_given_has_the_same_form(guest):
    """The socket's cookie, the CID and the port; the vectors have the form for another cookie."""
    row = VECTORS["names"][0]
    with vsock.socket(transport=guest.transport) as sock:
        sock.bind((row["cid"], vsock.PORT_ANY))
        port = sock.getsockname()[1]
        with socket.socket(fileno=os.dup(sock.fileno())) as plain:
            cookie = int.from_bytes(plain.getsockopt(SOL, 57, 8), "little")
            given = plain.getsockname()
    expected = bytes.fromhex(row["name"])
    for old, new in (
        (f"{row['unique']:016x}", f"{cookie:016x}"),
        (f"{row['port']:08x}", f"{port:08x}"),
    ):
        assert old.encode() in expected
        expected = expected.replace(old.encode(), new.encode())
    assert given == expected


# Calls


def unblocked(sock: vsock.socket) -> vsock.socket:
    """Make the socket non-blocking, and return it."""
    sock.setblocking(False)
    return sock


CALLS: dict[str, Callable[[vsock.socket], Any]] = {
    "bind": lambda sock: sock.bind(PEER),
    "listen": lambda sock: sock.listen(7),
    "connect": lambda sock: sock.connect(PEER),
    "connect non-blocking": lambda sock: unblocked(sock).connect(PEER),
    "accept": lambda sock: sock.accept(),
    "recv": lambda sock: len(sock.recv(100)),
    "recv nothing": lambda sock: len(sock.recv(0)),
    "recv MSG_OOB": lambda sock: sock.recv(100, socket.MSG_OOB),
    "recv MSG_ERRQUEUE": lambda sock: sock.recv(100, MSG_ERRQUEUE),
    "recv MSG_WAITALL of the buffer": lambda sock: len(sock.recv(BUFFER, socket.MSG_WAITALL)),
    "send": lambda sock: sock.send(bytes(100)),
    "send nothing": lambda sock: sock.send(b""),
    "send MSG_OOB": lambda sock: sock.send(bytes(100), socket.MSG_OOB),
    "send more than fits": lambda sock: unblocked(sock).send(bytes(BUFFER + 1)),
    "send more than is known to fit": lambda sock: sock.send(bytes(8193)),
    "sendto": lambda sock: sock.sendto(bytes(100), PEER),
    "getsockname": lambda sock: sock.getsockname(),
    "getpeername": lambda sock: sock.getpeername(),
    "shutdown SHUT_RD": lambda sock: sock.shutdown(0),
    "shutdown SHUT_WR": lambda sock: sock.shutdown(1),
    "shutdown SHUT_RDWR": lambda sock: sock.shutdown(2),
    "shutdown 3": lambda sock: sock.shutdown(3),
    "SO_ERROR": lambda sock: sock.getsockopt(SOL, socket.SO_ERROR),
    "SO_ZEROCOPY 1": lambda sock: sock.setsockopt(SOL, SO_ZEROCOPY, 1),
    "SO_ZEROCOPY 2": lambda sock: sock.setsockopt(SOL, SO_ZEROCOPY, 2),
    "SO_RCVLOWAT 1": lambda sock: sock.setsockopt(SOL, socket.SO_RCVLOWAT, 1),
    "SO_RCVLOWAT 2": lambda sock: sock.setsockopt(SOL, socket.SO_RCVLOWAT, 2),
    "SO_RCVLOWAT -1": lambda sock: sock.setsockopt(SOL, socket.SO_RCVLOWAT, -1),
    "SO_RCVLOWAT above the buffer": lambda sock: sock.setsockopt(
        SOL, socket.SO_RCVLOWAT, BUFFER + 1
    ),
    "SO_VM_SOCKETS_BUFFER_SIZE 4096": lambda sock: sock.setsockopt(
        AF_VSOCK, 0, struct.pack("=Q", 4096)
    ),
}
NOT_OF_PYTHON = {"connect waits", "SIOCINQ", "IOCTL_VM_SOCKETS_GET_LOCAL_CID"}
"""A part of another call, and ioctls, which Python makes on the descriptor."""
NEEDS_A_NODE = {"BIND", "CONNECT", "LISTEN", "waits", "takes"}
"""Results of calls that send a request to the node, or wait for it."""


def outcome(call: Callable[[], Any]) -> str:
    """The name of the errno that a call raises, or what it returns."""
    try:
        return str(call())
    except OSError as error:
        return errno.errorcode[error.errno or 0].replace("ENOTSUP", "EOPNOTSUPP")


@pytest.mark.usefixtures("runtime_dir")
@pytest.mark.parametrize("call", CALLS)
def test_call_does_the_same_to_a_socket_in_every_state(call):
    """The errno, or none, and the state afterwards; the runtime directory has no switch."""
    checked = 0
    for name in SOCKETS:
        does, word = VECTORS["calls"][call][name]
        if does in NEEDS_A_NODE or (call, does) == ("getsockname", "FLOW"):
            continue
        with made(name) as sock:
            got = outcome(lambda: CALLS[call](sock))
            if call == "SO_ERROR" and hasattr(errno, does):
                assert got == str(getattr(errno, does)), name
            elif re.fullmatch("E[A-Z]+", does):
                assert got == does, name
            elif does == "descriptor: EPIPE":
                assert got == "EPIPE", name
            elif does == "0":
                assert got == "0", name
            else:
                assert got not in errno.errorcode.values(), (name, does)
            assert word_of(sock) == word, (name, does)
        checked += 1
    assert checked > 1


def test_every_call_of_the_vectors_is_made():
    """A call that is added to the crate must be added here."""
    assert set(VECTORS["calls"]) == set(CALLS) | NOT_OF_PYTHON


# Options


def value_of(sock: vsock.socket, row: dict[str, Any], room: int) -> str:
    """An option as `getsockopt` returns it to a caller with this room, or the name of the errno."""
    return outcome(lambda: sock.getsockopt(row["level"], row["number"], room).hex())


@pytest.mark.usefixtures("runtime_dir")
@pytest.mark.parametrize(
    "row",
    VECTORS["option_calls"],
    ids=lambda row: f"{row['option']}-{row.get('value', row.get('room'))}",
)
def test_option_does_the_same_on_a_socket_in_every_state(row):
    """The errno, or none; the state afterwards; and what the option is then. The rows come from the crate's table."""
    checked = 0
    value = bytes.fromhex(row.get("value", ""))
    for does, got, names, changed in row["results"]:
        for name in SOCKETS.keys() & set(names):
            with made(name) as sock:
                if "value" in row:
                    said = outcome(lambda: sock.setsockopt(row["level"], row["number"], value))
                    assert said == (does if re.fullmatch("E[A-Z]+", does) else "None"), name
                after = value_of(sock, row, row.get("room", ENOUGH))
                if got in ("descriptor", "held buffer"):
                    assert re.fullmatch("([0-9a-f]{2})+", after), name
                else:
                    assert after == got, (name, does)
                assert word_of(sock) == changed.get(name, SOCKETS[name]["word"]), (name, does)
            checked += 1
    assert checked == len(SOCKETS)


@pytest.mark.parametrize(("level", "number"), VECTORS["unknown_options"])
def test_option_that_af_vsock_does_not_have_is_unknown(level, number):
    """Also if Python has it and the crate has not."""
    with vsock.socket() as sock:
        assert outcome(lambda: sock.getsockopt(level, number, ENOUGH)) == "ENOPROTOOPT"
        assert outcome(lambda: sock.setsockopt(level, number, 1)) == "ENOPROTOOPT"
        assert outcome(lambda: sock.setsockopt(level, number, bytes(ENOUGH))) == "ENOPROTOOPT"


HZ = round(1 / time.clock_getres(6))  # CLOCK_MONOTONIC_COARSE
OPTIONS = [row for row in VECTORS["options"] if row["hz"] == HZ]


def options_of(sock: vsock.socket) -> list[int]:
    """Size, minimum, maximum, and the connect timeout in seconds and microseconds."""
    sizes = (int.from_bytes(sock.getsockopt(AF_VSOCK, name, 8), "little") for name in range(3))
    return [*sizes, *struct.unpack("=qq", sock.getsockopt(AF_VSOCK, 6, 16))]


def set_options(sock: vsock.socket, inherited: bytes) -> None:
    """Set all options of a socket, in the form of those after a LISTEN."""
    size, least, most, microseconds = struct.unpack("<QQQQ", inherited)
    for name, value in ((2, 2**64 - 1), (1, 0), (0, size), (2, most), (1, least)):
        sock.setsockopt(AF_VSOCK, name, struct.pack("=Q", value))
    seconds, rest = divmod(microseconds, 1_000_000)
    sock.setsockopt(AF_VSOCK, 6, struct.pack("=qq", seconds, rest))


def test_there_are_options_for_the_ticks_of_this_kernel():
    """Timeouts are in ticks, and kernels have 100, 250, 300 or 1000 ticks a second."""
    assert len(OPTIONS) > 40


@pytest.mark.parametrize("row", OPTIONS, ids=range(len(OPTIONS)))
def test_setting_of_an_option_has_the_same_effect(row):
    """The errno, or the options afterwards, and their form in the times of the inode."""
    with vsock.socket() as sock:
        before = bytes.fromhex(row["before"])
        set_options(sock, before)
        value = bytes.fromhex(row["value"])
        got = outcome(lambda: sock.setsockopt(AF_VSOCK, row["name"], value))
        assert got == row.get("errno", "None")
        if "errno" in row:
            return
        after = struct.unpack("<QQQQ", bytes.fromhex(row["inherited"]))
        assert options_of(sock) == [*after[:3], *row["timeval"]]
        is_kept = int(word_of(sock), 16) >> 40 & VECTORS["flags"]["OPTIONS"] != 0
        assert is_kept == row["is_kept"]
        if is_kept:
            status = os.fstat(sock.fileno())
            times = [
                part
                for time in (status.st_atime_ns, status.st_mtime_ns)
                for part in divmod(time, 10**9)
            ]
            assert times == row["times"]


@pytest.mark.parametrize("row", OPTIONS, ids=range(len(OPTIONS)))
def test_options_that_accepted_sockets_inherit_are_the_same_bytes(row):
    """They stand behind a LISTEN, and behind each ACCEPT."""
    before = bytes.fromhex(row["before"])
    assert len(before) == INHERITED_SIZE
    options = VsockOptions.decode(before)
    assert options.encode() == before
    if "errno" not in row:
        options.set(row["name"], bytes.fromhex(row["value"]))
        assert options.encode().hex() == row["inherited"]

"""Messages, records, flags and buffers of plain `socket` code through the preload library."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import vsock
from vsock.guest import Guest

Python = Callable[..., list[str]]


@pytest.fixture
def peer(guest: Guest) -> Any:
    """Runs a function with the one connection to port 5000 of the guest (CID 3)."""
    threads = []

    def serve(
        kind: int, function: Callable[[socket.socket], object], *, buffer: int | None = None
    ) -> None:
        listener = guest.create_server((vsock.CID_ANY, 5000), type=kind)
        if buffer is not None:
            for name in (2, 0):  # the largest size first, then the size
                listener.setsockopt(40, name, buffer.to_bytes(8, "little"))

        def accept() -> None:
            with listener:
                connection, _ = listener.accept()
            with connection:
                function(connection)

        threads.append(threading.Thread(target=accept))
        threads[-1].start()

    yield serve
    for thread in threads:
        thread.join(20)


def test_records_keep_their_ends_both_ways(peer: Any, python: Python) -> None:
    """MSG_EOR with send, sendmsg and recvmsg; other messages have none, and control data is empty."""

    def answer(connection: socket.socket) -> None:
        for _ in range(4):
            data, _, flags, _ = connection.recvmsg(100)
            connection.sendmsg([data[::-1]], (), flags & socket.MSG_EOR)

    peer(socket.SOCK_SEQPACKET, answer)
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_SEQPACKET)
s.connect((3, 5000))
s.send(b"one", socket.MSG_EOR)
s.send(b"two")
s.sendmsg([b"th", b"ree"], [], socket.MSG_EOR)
s.sendmsg([b"four"], [(SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))])
for room in (0, 200, 0, 200):
    data, control, flags, address = s.recvmsg(100, room)
    say(data, control, bool(flags & socket.MSG_EOR), bool(flags & socket.MSG_CTRUNC), address)
"""
    )
    assert said == [
        "b'eno' [] True False None",
        "b'owt' [] False False None",
        "b'eerht' [] True False None",
        "b'ruof' [] False False None",
    ]


def test_longer_message_than_a_buffer_is_refused(peer: Any, python: Python) -> None:
    """EMSGSIZE by send and by write, against the smaller buffer of both sides."""

    def answer(connection: socket.socket) -> None:
        while message := connection.recv(1 << 20):
            connection.send(b"%d" % len(message))

    peer(socket.SOCK_SEQPACKET, answer, buffer=20_000)
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_SEQPACKET)
s.connect((3, 5000))
say(error(s.send, bytes(20_001)), error(os.write, s.fileno(), bytes(20_001)))
say(error(s.sendmsg, [bytes(20_000), b"x"]), s.sendmsg([bytes(10_000), bytes(10_000)]), s.recv(100))
s.setsockopt(AF_VSOCK, 0, 1_000)
say(error(s.send, bytes(1_001)), s.send(bytes(1_000)), s.recv(100))
"""
    )
    assert said == [
        "EMSGSIZE EMSGSIZE",
        "EMSGSIZE 20000 b'20000'",
        "EMSGSIZE 1000 b'1000'",
    ]


def test_message_longer_than_the_room_is_cut_and_told(peer: Any, python: Python) -> None:
    """With MSG_TRUNC in the returned flags, and with MSG_TRUNC given."""
    peer(socket.SOCK_SEQPACKET, lambda connection: [connection.send(b"message") for _ in "123"])
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_SEQPACKET)
s.connect((3, 5000))
data, _, flags, _ = s.recvmsg(4)
say(data, flags == socket.MSG_TRUNC | (flags & socket.MSG_CMSG_CLOEXEC))
say(s.recv_into(bytearray(4), 4, socket.MSG_TRUNC), s.recv(4, socket.MSG_PEEK), s.recv(100))
say(error(s.send, b"late") in ("no error", "EPIPE"), s.recv(10))
"""
    )
    assert said == ["b'mess' True", "7 b'mess' b'message'", "True b''"]


def test_receiving_is_over_at_once_after_shut_rd(peer: Any, python: Python) -> None:
    """Data that arrived before is not returned either; sending goes on, and the peer is notified."""
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(b"unread")
        assert connection.recv(100) == b"heard"
        done.set()

    peer(socket.SOCK_STREAM, answer)
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.connect((3, 5000))
select.select([s], [], [], 5)
s.send(b"heard")
s.shutdown(socket.SHUT_RD)
say(s.recv(100), os.read(s.fileno(), 100), s.recvmsg(100)[0], error(s.getpeername))
"""
    )
    assert said == ["b'' b'' b'' ENOTCONN"]
    assert done.wait(10)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_peer_hears_of_shut_rd_while_it_sends_nothing(peer: Any, python: Python, kind: int) -> None:
    """The peer is notified at once, and not only when its next data is rejected."""
    told: list[bool] = []

    def answer(connection: socket.socket) -> None:
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            try:
                # An empty send transmits nothing, but fails if the peer does not receive.
                socket.socket.send(connection, b"")
            except BrokenPipeError:
                told.append(True)
            threading.Event().wait(0.002)
        connection.shutdown(socket.SHUT_RD)

    peer(kind, answer)
    said = python(
        f"""
s = socket.socket(AF_VSOCK, {int(kind)})
s.connect((3, 5000))
s.shutdown(socket.SHUT_RD)
poll = select.poll()
poll.register(s, 0)  # hung up when the other side receives no more either
say(bool(poll.poll(10000)))
"""
    )
    assert said == ["True"]
    assert told == [True]


def test_flags_are_those_of_af_vsock(peer: Any, python: Python) -> None:
    """No out-of-band data, no error queue; MSG_WAITALL must fit the buffer."""
    peer(socket.SOCK_STREAM, lambda connection: connection.sendall(connection.recv(100) * 2))
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
say(error(s.recv, 1, socket.MSG_OOB), error(s.send, b"x", socket.MSG_OOB))
s.connect((3, 5000))
say(error(s.recv, 1, socket.MSG_OOB), error(s.send, b"x", socket.MSG_OOB))
say(error(s.recv, 1, socket.MSG_ERRQUEUE), error(s.recv, 1 << 18, socket.MSG_WAITALL))
s.send(b"ab", socket.MSG_EOR)
say(s.recv(4, socket.MSG_WAITALL), s.recv(4, socket.MSG_WAITALL), s.recv(0))
"""
    )
    assert said == [
        "ENOTCONN EOPNOTSUPP",
        "EOPNOTSUPP EOPNOTSUPP",
        "EAGAIN ENOMEM",
        "b'abab' b'' b''",
    ]


def test_buffer_of_a_connection_is_told_to_the_other_side(peer: Any, start_python: Any) -> None:
    """The peer can send more than the default buffer although no program reads."""
    size = 3 << 20
    sent = threading.Event()

    def answer(connection: socket.socket) -> None:
        assert connection.recv(1) == b"1"
        connection.sendall(bytes(size))
        sent.set()

    # The sender's buffer is as large: a kernel limits a sender by its own buffer too (D5).
    peer(socket.SOCK_STREAM, answer, buffer=1 << 22)
    program = start_python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.setsockopt(AF_VSOCK, 2, 1 << 22)
s.connect((3, 5000))
s.setsockopt(AF_VSOCK, 0, 1 << 22)
s.send(b"1")
sys.stdin.read()
say(len(b"".join(iter(lambda: s.recv(1 << 16), b""))))
""",
        stdin=subprocess.PIPE,
    )
    assert sent.wait(20)
    assert program.communicate("read now", timeout=20)[0] == f"{size}\n"


def test_options_of_unix_sockets_and_zerocopy(peer: Any, python: Python) -> None:
    """Options that only AF_UNIX has are EOPNOTSUPP; SO_ZEROCOPY can be set, but connect fails with it."""
    peer(socket.SOCK_STREAM, lambda connection: connection.close())
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
say(*(error(s.setsockopt, SOL_SOCKET, name, 1) for name in (16, 34, 42, 76)))
say(error(s.setsockopt, SOL_SOCKET, 60, 2), error(s.setsockopt, SOL_SOCKET, 60, 1))
say(s.getsockopt(SOL_SOCKET, 60), error(s.connect, (3, 5000)))
s.setsockopt(SOL_SOCKET, 60, 0)
s.connect((3, 5000))
say(error(s.setsockopt, SOL_SOCKET, 60, 1), error(s.setsockopt, SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 20))
"""
    )
    assert said == [
        "EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP",
        "EINVAL no error",
        "1 EOPNOTSUPP",
        "EOPNOTSUPP EINVAL",
    ]


def test_shutdown_gives_a_connect_up(switch: Any, python: Python) -> None:
    """While the attempt is pending: guest 4 is not attached."""
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.setblocking(False)
say(error(s.connect, (4, 5000)), error(s.connect, (4, 5000)))
s.shutdown(socket.SHUT_RDWR)
say(error(s.connect, (4, 5000)), error(s.recv, 1), error(s.send, b"x"))
"""
    )
    assert said[0] == "EINPROGRESS EALREADY"
    assert said[1] == "EINVAL ENOTCONN EPIPE"

"""The data calls: flags, order of checks, effects of shutdown, and records (kernel-semantics, 6, 7)."""

import array
import errno
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

import vsock
from vsock import CID_LOCAL

PORT = 5000
MSG_ERRQUEUE = 0x2000


def errno_of(call) -> int | None:
    """The errno that `call` raises."""
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


def connected(kind: int, guest) -> tuple[socket.socket, socket.socket]:
    """A host program's end and a guest's."""
    with guest.create_server(PORT, type=kind) as listener:
        ours = vsock.create_connection((3, PORT), type=kind)
        return ours, listener.accept()[0]


@pytest.fixture
def stream(guest):
    """Both ends of a stream."""
    ours, theirs = connected(vsock.SOCK_STREAM, guest)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def messages(guest):
    """Both ends of a SEQPACKET connection."""
    ours, theirs = connected(vsock.SOCK_SEQPACKET, guest)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture(params=[vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET])
def pair(guest, request):
    """Both ends of a connection of either type."""
    ours, theirs = connected(request.param, guest)
    with ours, theirs:
        yield ours, theirs


def open_files() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_readable(sock: socket.socket) -> None:
    """Wait until there is data, or the end of the data."""
    assert select.select([sock], [], [], 10)[0]


# Order of checks


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda sock: sock.send(b"x", socket.MSG_OOB), errno.EOPNOTSUPP),
        (lambda sock: sock.sendto(b"x", (3, PORT)), errno.EOPNOTSUPP),
        (lambda sock: sock.sendmsg([b"x"], [], 0, (3, PORT)), errno.EOPNOTSUPP),
        (lambda sock: sock.send(b""), errno.ENOTCONN),
        (lambda sock: sock.recv(1, socket.MSG_OOB), errno.ENOTCONN),
        (lambda sock: sock.recv(0), errno.ENOTCONN),
        (lambda sock: sock.recvfrom(1), errno.ENOTCONN),
        (lambda sock: sock.recvmsg(1), errno.ENOTCONN),
        (lambda sock: sock.recv(1, MSG_ERRQUEUE), errno.EAGAIN),
        (lambda sock: sock.shutdown(7), errno.EINVAL),
        (lambda sock: sock.shutdown(socket.SHUT_RD), errno.ENOTCONN),
    ],
)
def test_fresh_socket_used_for_data_gives_the_first_error_of_the_kernels_order(call, number):
    """Invalid flags are checked before the state when sending, after it when receiving."""
    for kind in (vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET):
        with vsock.socket(kind) as sock:
            assert errno_of(lambda sock=sock: call(sock)) == number


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda sock: sock.send(b"x", socket.MSG_OOB), errno.EOPNOTSUPP),
        (lambda sock: sock.recv(1, socket.MSG_OOB), errno.EOPNOTSUPP),
        (lambda sock: sock.recv_into(bytearray(1), 0, socket.MSG_OOB), errno.EOPNOTSUPP),
        (lambda sock: sock.sendto(b"x", (3, PORT)), errno.EISCONN),
        (lambda sock: sock.sendto(b"x", 0, (3, PORT)), errno.EISCONN),
        (lambda sock: sock.recv(1, socket.MSG_DONTWAIT), errno.EAGAIN),
        (lambda sock: sock.recv(1, MSG_ERRQUEUE), errno.EAGAIN),
        (lambda sock: sock.connect((3, PORT)), errno.EISCONN),
        (lambda sock: sock.listen(), errno.EINVAL),
        (lambda sock: sock.bind((vsock.CID_ANY, 7000)), errno.EINVAL),
        (lambda sock: sock.accept(), errno.EINVAL),
        (lambda sock: sock.shutdown(-1), errno.EINVAL),
    ],
)
def test_connected_socket_gives_the_kernels_errno(pair, call, number):
    """Afterwards it still works."""
    ours, theirs = pair
    assert errno_of(lambda: call(ours)) == number
    ours.send(b"goes on")
    assert theirs.recv(100) == b"goes on"


def test_listener_is_no_connection(switch):
    """shutdown, send and recv of a listener are ENOTCONN."""
    with vsock.create_server(PORT) as listener:
        assert errno_of(lambda: listener.shutdown(socket.SHUT_RDWR)) == errno.ENOTCONN
        assert errno_of(lambda: listener.send(b"x")) == errno.ENOTCONN
        assert errno_of(lambda: listener.recv(1)) == errno.ENOTCONN
        assert errno_of(listener.getpeername) == errno.ENOTCONN
        with vsock.create_connection((CID_LOCAL, PORT)):
            listener.accept()[0].close()


# Receiving


def test_receive_of_nothing_takes_nothing(pair):
    """Length 0 returns 0 at once, and a message stays in the queue."""
    ours, theirs = pair
    assert theirs.recv(0) == b""
    ours.send(b"whole")
    wait_readable(theirs)
    assert theirs.recv(0) == b""
    assert theirs.recvmsg(0) == (b"", [], 0, None)
    assert theirs.recv_into(bytearray()) == 0
    assert theirs.recv(100) == b"whole"


def test_received_data_has_no_address_and_no_ancillary_data(pair):
    """As on every connected AF_VSOCK socket."""
    ours, theirs = pair
    ours.send(b"1")
    assert theirs.recvfrom(10) == (b"1", None)
    ours.send(b"2")
    buffer = bytearray(10)
    assert theirs.recvfrom_into(buffer) == (1, None)
    ours.send(b"3")
    assert theirs.recvmsg(10, 1000) == (b"3", [], 0, None)
    ours.send(b"4")
    assert theirs.recvmsg_into([buffer], 1000) == (1, [], 0, None)


def test_ancillary_data_sent_is_ignored(stream):
    """The descriptor does not reach the switch, and the data arrives."""
    ours, theirs = stream
    with Path(os.devnull).open() as file:
        fds = array.array("i", [file.fileno()])
        ours.sendmsg([b"da", b"ta"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    assert theirs.recv(100) == b"data"


def test_peek_shows_and_takes_nothing(pair):
    """MSG_PEEK, also after a part was read."""
    ours, theirs = pair
    assert errno_of(lambda: theirs.recv(9, socket.MSG_PEEK | socket.MSG_DONTWAIT)) == errno.EAGAIN
    ours.send(b"0123456789")
    assert theirs.recv(4, socket.MSG_PEEK) == b"0123"
    assert theirs.recv(100, socket.MSG_PEEK) == b"0123456789"
    if theirs.type == vsock.SOCK_STREAM:
        assert theirs.recv(1) == b"0"
        assert theirs.recv(100, socket.MSG_PEEK) == b"123456789"
        assert theirs.recv(9) == b"123456789"
    else:
        assert theirs.recvmsg(4, 0, socket.MSG_PEEK)[::2] == (b"0123", socket.MSG_TRUNC)
        assert theirs.recv(100) == b"0123456789"


def test_stream_receive_of_all_waits_for_all(stream):
    """MSG_WAITALL, and SO_RCVLOWAT for fewer bytes; asking for the buffer's size is ENOMEM."""
    ours, theirs = stream
    sender = threading.Thread(target=lambda: [ours.send(b"x") for _ in range(2000)])
    sender.start()
    assert len(theirs.recv(1000, socket.MSG_WAITALL)) == 1000
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 500)
    assert len(theirs.recv(10_000)) >= 500
    sender.join()
    for length in (262144, 300_000):
        assert errno_of(lambda n=length: theirs.recv(n, socket.MSG_WAITALL)) == errno.ENOMEM
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 262144)
    assert errno_of(lambda: theirs.recv(262144)) == errno.ENOMEM


def test_stream_truncation_flag_discards_nothing(stream):
    """MSG_TRUNC has no effect on a stream."""
    ours, theirs = stream
    ours.send(b"0123456789")
    assert theirs.recv(4, socket.MSG_TRUNC) == b"0123"
    assert theirs.recv(6) == b"456789"


def test_short_receive_of_a_message_loses_its_rest(messages):
    """MSG_TRUNC is returned; with the flag given, the length is too."""
    ours, theirs = messages
    for _ in range(3):
        ours.send(b"0123456789")
    assert theirs.recvmsg(4)[:3] == (b"0123", [], socket.MSG_TRUNC)
    length, _, flags, _ = theirs.recvmsg_into([bytearray(3), bytearray(2)], 0, socket.MSG_TRUNC)
    assert (length, flags) == (10, socket.MSG_TRUNC)
    assert theirs.recv(100) == b"0123456789"


# Sending


def test_empty_send_puts_nothing_on_the_wire(pair):
    """The receiver would read an empty message as the end."""
    ours, theirs = pair
    assert ours.send(b"") == 0
    ours.sendall(b"")
    assert ours.sendmsg([b"", b""]) == 0
    ours.send(b"next")
    assert theirs.recv(100) == b"next"


def test_message_sent_in_pieces_is_one_message(messages):
    """sendmsg gathers, recvmsg_into scatters."""
    ours, theirs = messages
    assert ours.sendmsg([b"one ", b"", b"message"]) == 11
    ours.sendall(b"another")
    first, second = bytearray(4), bytearray(100)
    assert theirs.recvmsg_into([first, second])[0] == 11
    assert (bytes(first), bytes(second[:7])) == (b"one ", b"message")
    assert theirs.recv(100) == b"another"


@pytest.mark.parametrize("size", [1, 65536, 65537, 262144])
@pytest.mark.parametrize("direction", ["out", "in"])
def test_record_end_is_kept_through_rings_in_both_directions(messages, size, direction):
    """MSG_EOR arrives as it was sent, for messages of one packet and of many."""
    sender, receiver = messages if direction == "out" else messages[::-1]
    pattern = [True, False, True, True, False]

    def send() -> None:
        for ends in pattern:
            assert sender.send(bytes(size), socket.MSG_EOR if ends else 0) == size

    thread = threading.Thread(target=send)
    thread.start()
    for ends in pattern:
        data, ancillary, flags, _ = receiver.recvmsg(1 << 20)
        assert (len(data), ancillary) == (size, [])
        assert flags == (socket.MSG_EOR if ends else 0)
    thread.join()


def test_record_end_costs_no_descriptors_and_reads_plainly(messages):
    """A reader that ignores records gets messages; no descriptor is left open."""
    ours, theirs = messages
    before = open_files()
    for number in range(300):
        ours.send(b"%d" % number, socket.MSG_EOR)
        assert theirs.recv(100) == b"%d" % number
    # One descriptor marks records for all sockets, another for all nodes of the process.
    assert open_files() <= before + 2
    ours.send(b"0123456789", socket.MSG_EOR)
    assert theirs.recvmsg(4)[2] == socket.MSG_EOR | socket.MSG_TRUNC


def test_record_flag_on_a_stream_means_nothing(stream):
    """MSG_EOR and MSG_MORE are ignored there."""
    ours, theirs = stream
    ours.send(b"x", socket.MSG_EOR)
    ours.send(b"y", 0x8000)  # MSG_MORE
    assert theirs.recv(2, socket.MSG_WAITALL) == b"xy"


# Shutting down


def test_receive_after_shut_rd_gives_nothing_even_if_data_waits(pair):
    """SHUT_RD takes effect at once; the other direction goes on."""
    ours, theirs = pair
    theirs.send(b"never read")
    wait_readable(ours)
    ours.shutdown(socket.SHUT_RD)
    assert ours.recv(100) == b""
    assert ours.recvmsg(100) == (b"", [], 0, None)
    assert errno_of(ours.getpeername) == errno.ENOTCONN
    assert ours.connect_ex((3, PORT)) == errno.EINVAL
    ours.send(b"still sent")
    assert theirs.recv(100) == b"still sent"


def test_send_after_either_side_shut_it_is_epipe(pair):
    """After SHUT_WR on this side, or SHUT_RD on the other."""
    ours, theirs = pair
    ours.shutdown(socket.SHUT_WR)
    assert errno_of(lambda: ours.send(b"x")) == errno.EPIPE
    assert theirs.recv(1) == b""
    ours.shutdown(socket.SHUT_RD)
    poller = select.poll()
    poller.register(theirs, 0)  # poll always reports POLLHUP
    assert poller.poll(10_000)
    assert errno_of(lambda: theirs.send(b"x")) == errno.EPIPE


def test_sender_hears_of_shut_rd_while_it_sends_nothing(pair):
    """The other side is notified at once, and not only when its next data is rejected."""
    ours, theirs = pair
    ours.shutdown(socket.SHUT_RD)
    deadline = time.monotonic() + 10
    # An empty send transmits nothing, but fails if the peer does not receive.
    while errno_of(lambda: socket.socket.send(theirs, b"")) != errno.EPIPE:
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def test_sender_that_waits_for_room_is_ended_by_shut_rd(pair):
    """Its socket is full and is not read any more: only the shutdown can wake it."""
    ours, theirs = pair
    fill(theirs)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 10, 0))
    ours.shutdown(socket.SHUT_RD)
    assert errno_of(lambda: theirs.sendall(bytes(4096))) == errno.EPIPE


def fill(sock):
    """Send until the socket stays full."""
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    refusals = 0
    while refusals < 3:
        try:
            sock.send(bytes(4096), socket.MSG_DONTWAIT)
            refusals = 0
        except BlockingIOError:
            refusals += 1
            poller.poll(50)


def test_connect_under_way_is_given_up_by_shutdown(switch):
    """As in the kernel: afterwards there is no connection to read from, and another connect fails."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((4, PORT)) == errno.EINPROGRESS
        sock.shutdown(socket.SHUT_WR)
        assert errno_of(lambda: sock.send(b"x")) == errno.EPIPE
        assert errno_of(lambda: sock.recv(1)) == errno.ENOTCONN
        assert sock.connect_ex((4, PORT)) == errno.EINVAL

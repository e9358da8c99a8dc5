"""Options of a `vsock.socket`, with the kernel's rules (kernel-semantics, 6.4 and 10)."""

import contextlib
import errno
import pickle
import socket
import struct

import pytest

import vsock
from vsock import (
    CID_LOCAL,
    SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE,
    SO_VM_SOCKETS_BUFFER_SIZE,
    SO_VM_SOCKETS_CONNECT_TIMEOUT,
)
from vsock.transports import SwitchTransport

AF_VSOCK = 40
CONNECT_TIMEOUT_NEW = 8
SOL = socket.SOL_SOCKET
PORT = 5000


def get_size(sock: socket.socket, name: int = SO_VM_SOCKETS_BUFFER_SIZE) -> int:
    """A 64-bit option."""
    return int.from_bytes(sock.getsockopt(AF_VSOCK, name, 8), "little")


def set_size(sock: socket.socket, size: int, name: int = SO_VM_SOCKETS_BUFFER_SIZE) -> None:
    """Set a 64-bit option."""
    sock.setsockopt(AF_VSOCK, name, struct.pack("=Q", size))


def errno_of(call) -> int | None:
    """The errno that `call` raises."""
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


@pytest.fixture
def sock():
    """A fresh socket; no switch is needed for its options."""
    with vsock.socket() as sock:
        yield sock


# Level AF_VSOCK


def test_fresh_socket_has_the_kernels_defaults(sock):
    """256 KiB, between 128 bytes and 256 KiB, and two seconds."""
    assert get_size(sock) == get_size(sock, SO_VM_SOCKETS_BUFFER_MAX_SIZE) == 262144
    assert get_size(sock, SO_VM_SOCKETS_BUFFER_MIN_SIZE) == 128
    for name in (SO_VM_SOCKETS_CONNECT_TIMEOUT, CONNECT_TIMEOUT_NEW):
        assert sock.getsockopt(AF_VSOCK, name, 16) == struct.pack("=qq", 2, 0)


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        ([(SO_VM_SOCKETS_BUFFER_SIZE, 1)], 128),
        ([(SO_VM_SOCKETS_BUFFER_SIZE, 1 << 20)], 262144),
        ([(SO_VM_SOCKETS_BUFFER_MAX_SIZE, 1 << 20), (SO_VM_SOCKETS_BUFFER_SIZE, 1 << 20)], 1 << 20),
        ([(SO_VM_SOCKETS_BUFFER_MAX_SIZE, 4096)], 4096),
        ([(SO_VM_SOCKETS_BUFFER_MIN_SIZE, 1 << 20)], 262144),
        ([(SO_VM_SOCKETS_BUFFER_MAX_SIZE, 64)], 64),
        ([(SO_VM_SOCKETS_BUFFER_MAX_SIZE, 1 << 40), (SO_VM_SOCKETS_BUFFER_SIZE, 1 << 40)], 1 << 40),
        ([(SO_VM_SOCKETS_BUFFER_SIZE, 1000), (SO_VM_SOCKETS_BUFFER_MIN_SIZE, 2000)], 2000),
    ],
)
def test_buffer_sizes_are_clamped_silently_and_the_maximum_wins(sock, steps, size):
    """Any value is accepted; the minimum is applied first, then the maximum."""
    for name, value in steps:
        set_size(sock, value, name)
        if name != SO_VM_SOCKETS_BUFFER_SIZE:
            assert get_size(sock, name) == value
    assert get_size(sock) == size


@pytest.mark.parametrize(
    ("name", "length", "number"),
    [
        (SO_VM_SOCKETS_BUFFER_SIZE, 0, errno.EINVAL),
        (SO_VM_SOCKETS_BUFFER_SIZE, 4, errno.EINVAL),
        (SO_VM_SOCKETS_BUFFER_MIN_SIZE, 7, errno.EINVAL),
        (SO_VM_SOCKETS_BUFFER_MAX_SIZE, 8, 0),
        (SO_VM_SOCKETS_BUFFER_SIZE, 16, 0),
        (SO_VM_SOCKETS_CONNECT_TIMEOUT, 8, errno.EINVAL),
        (SO_VM_SOCKETS_CONNECT_TIMEOUT, 16, 0),
        (CONNECT_TIMEOUT_NEW, 20, 0),
        (3, 8, errno.ENOPROTOOPT),
        (5, 8, errno.ENOPROTOOPT),
        (7, 8, errno.ENOPROTOOPT),
        (99, 8, errno.ENOPROTOOPT),
    ],
)
def test_option_of_any_length_gives_the_kernels_errno(sock, name, length, number):
    """A too short value is EINVAL, a longer one is accepted, an unknown option ENOPROTOOPT; for get and set."""
    assert errno_of(lambda: sock.setsockopt(AF_VSOCK, name, bytes(length))) == number
    if length:
        assert errno_of(lambda: sock.getsockopt(AF_VSOCK, name, length)) == number


def test_longer_get_is_trimmed_to_the_options_size(sock):
    """getsockopt returns the option's real length."""
    assert len(sock.getsockopt(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, 64)) == 8


def test_size_without_a_length_is_an_integer_of_64_bits(sock):
    """As in Python's own AF_VSOCK sockets."""
    sock.setsockopt(AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, 1 << 40)
    sock.setsockopt(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, 1 << 33)
    assert sock.getsockopt(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE) == 1 << 33


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((3, 0), (3, 0)),
        ((0, 0), (2, 0)),
        ((0, 1), (0, 4000)),
        ((1, 1), (1, 4000)),
        ((1, 4000), (1, 4000)),
        ((0, 999_999), (1, 0)),
        ((-1, 0), errno.ERANGE),
        ((0, 1_000_000), errno.ERANGE),
        ((1 << 62, 0), errno.ERANGE),
    ],
)
def test_connect_timeout_is_kept_in_ticks_and_checked(sock, given, told):
    """Rounded up to 4 ms; zero is the default; an invalid time is ERANGE."""
    value = struct.pack("=qq", *given)
    if isinstance(told, int):
        call = errno_of(lambda: sock.setsockopt(AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, value))
        assert call == told
    else:
        sock.setsockopt(AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, value)
        assert sock.getsockopt(AF_VSOCK, CONNECT_TIMEOUT_NEW, 16) == struct.pack("=qq", *told)
        assert sock.connect_timeout == told[0] + told[1] / 1e6


def test_connect_timeout_option_bounds_the_connect(switch):
    """The option and `connect_timeout` are the same, and the switch applies it."""
    with vsock.socket() as sock:
        value = struct.pack("=qq", 0, 52_000)
        sock.setsockopt(AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, value)
        with pytest.raises(vsock.ConnectTimeout):
            sock.connect((4, PORT))


def test_level_that_is_none_of_ours_is_enoprotoopt(sock):
    """Also SOL_VSOCK (287), which is a level of control messages only."""
    for level in (socket.IPPROTO_TCP, 287):
        assert errno_of(lambda level=level: sock.setsockopt(level, 1, 1)) == errno.ENOPROTOOPT
        assert errno_of(lambda level=level: sock.getsockopt(level, 1)) == errno.ENOPROTOOPT


# Buffers of live connections


def fill(sock: socket.socket) -> int:
    """How much can be sent without a reader: the credit, and the buffers of the Unix sockets."""
    sock.settimeout(0.2)
    total = 0
    with contextlib.suppress(TimeoutError):
        while total < 1 << 24:
            total += sock.send(bytes(4096))
    return total


@pytest.mark.parametrize("how", ["before", "after", "listener", "accepted"])
def test_smaller_buffer_lets_less_be_under_way(guest, how):
    """Set before connect, on a connection, or on the listener: it is announced to the other side."""
    with guest.create_server(PORT) as listener, vsock.socket() as ours:
        if how == "listener":
            set_size(listener, 4096)
        if how == "before":
            set_size(ours, 4096)
        ours.connect((3, PORT))
        theirs, _ = listener.accept()
        with theirs:
            if how == "after":
                set_size(ours, 4096)
            if how == "accepted":
                set_size(theirs, 4096)
            assert get_size(theirs) == (4096 if how in ("listener", "accepted") else 262144)
            sender = theirs if how in ("before", "after") else ours
            small = fill(sender)
        if how == "listener":
            set_size(listener, 262144)
        with vsock.create_connection((3, PORT)):
            theirs, _ = listener.accept()
            with theirs:
                large = fill(theirs)
        assert large - small > 128 * 1024


def test_longest_message_follows_the_buffers_of_both_sides(guest):
    """EMSGSIZE beyond the smaller one, also after a change."""
    kind = vsock.SOCK_SEQPACKET
    with (
        guest.create_server(PORT, type=kind) as listener,
        vsock.create_connection((3, PORT), type=kind) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:
            assert errno_of(lambda: ours.send(bytes(262145))) == errno.EMSGSIZE
            assert ours.send(bytes(262144)) == 262144
            assert len(theirs.recv(1 << 20)) == 262144
            set_size(ours, 1000)
            assert errno_of(lambda: ours.send(bytes(1001))) == errno.EMSGSIZE
            assert ours.send(bytes(1000)) == 1000
            assert len(theirs.recv(1 << 20)) == 1000
            set_size(ours, 262144)
            assert ours.send(bytes(100_000)) == 100_000
            assert len(theirs.recv(1 << 20)) == 100_000


def test_buffer_of_somebody_elses_connection_cannot_be_changed(switch):
    """A number without a connection is ENOTCONN."""
    node = SwitchTransport(str(switch.runtime_dir)).node
    with pytest.raises(OSError, match="connected") as caught:
        node.set_buffer(12345, 4096)
    assert caught.value.errno == errno.ENOTCONN


# Level SOL_SOCKET


def test_socket_says_what_an_af_vsock_socket_says_of_itself(switch):
    """Domain, type, protocol and whether it listens."""
    for kind in (vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET):
        with vsock.socket(kind) as sock:
            assert sock.getsockopt(SOL, socket.SO_DOMAIN) == AF_VSOCK
            assert sock.getsockopt(SOL, socket.SO_TYPE) == kind
            assert sock.getsockopt(SOL, socket.SO_PROTOCOL) == 0
            assert sock.getsockopt(SOL, socket.SO_ERROR) == 0
            assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 0
    with vsock.create_server(PORT) as listener:
        assert listener.getsockopt(SOL, socket.SO_ACCEPTCONN) == 1


@pytest.mark.parametrize(
    ("value", "number"), [(-1, errno.EINVAL), (262145, errno.EINVAL), (262144, 0)]
)
def test_low_water_mark_beyond_the_buffer_is_einval(sock, value, number):
    """Such a mark could never be reached."""
    assert errno_of(lambda: sock.setsockopt(SOL, socket.SO_RCVLOWAT, value)) == number


def test_low_water_mark_of_zero_is_one(sock):
    """As the kernel stores it."""
    sock.setsockopt(SOL, socket.SO_RCVLOWAT, 0)
    assert sock.getsockopt(SOL, socket.SO_RCVLOWAT) == 1


@pytest.mark.parametrize(
    ("name", "value", "number"),
    [
        (15, 1, errno.EOPNOTSUPP),  # SO_REUSEPORT
        (socket.SO_REUSEADDR, 1, 0),
        (socket.SO_KEEPALIVE, 1, 0),
        (60, 1, 0),  # SO_ZEROCOPY, checked again at connect
        (60, 2, errno.EINVAL),
        (42, 1, errno.EOPNOTSUPP),  # SO_PEEK_OFF
    ],
)
def test_generic_option_is_taken_or_refused_as_by_af_vsock(sock, name, value, number):
    """Options of other families are errors, options without effect are stored."""
    assert errno_of(lambda: sock.setsockopt(SOL, name, value)) == number
    if number == 0:
        assert sock.getsockopt(SOL, name) == value


def test_linger_is_stored_and_close_returns(switch):
    """The data is sent after close anyway, so close does not wait."""
    with (
        vsock.create_server(PORT) as listener,
        vsock.create_connection((CID_LOCAL, PORT)) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:
            ours.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 5))
            assert ours.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 5)
            ours.sendall(b"last words")
            ours.close()
            assert theirs.recv(100) == b"last words"


def test_zerocopy_asked_for_is_refused_at_connect_and_on_connections(switch):
    """No connection through the switch has it."""
    with vsock.create_server(PORT), vsock.socket() as sock:
        sock.setsockopt(SOL, 60, 1)
        assert sock.connect_ex((CID_LOCAL, PORT)) == errno.EOPNOTSUPP
        sock.setsockopt(SOL, 60, 0)
        assert sock.connect_ex((CID_LOCAL, PORT)) == 0
        assert errno_of(lambda: sock.setsockopt(SOL, 60, 1)) == errno.EOPNOTSUPP


def test_receive_timeout_ends_receive_and_accept_with_eagain(switch):
    """SO_RCVTIMEO, read back as it was set, for a socket that blocks."""
    value = struct.pack("ll", 0, 52_000)
    with vsock.create_server(PORT) as listener:
        listener.setsockopt(SOL, socket.SO_RCVTIMEO, value)
        assert listener.getsockopt(SOL, socket.SO_RCVTIMEO, 16) == value
        with pytest.raises(BlockingIOError):
            listener.accept()
        with vsock.create_connection((CID_LOCAL, PORT)) as ours:
            ours.setsockopt(SOL, socket.SO_RCVTIMEO, value)
            with pytest.raises(BlockingIOError):
                ours.recv(1)


def test_send_timeout_ends_a_blocked_send_with_eagain(switch):
    """SO_SNDTIMEO, when the peer does not read."""
    with (
        vsock.create_server(PORT),
        vsock.create_connection((CID_LOCAL, PORT)) as ours,
    ):
        ours.setsockopt(SOL, socket.SO_SNDTIMEO, struct.pack("ll", 0, 52_000))
        data = bytes(1 << 24)
        assert 0 < ours.send(data) < len(data)
        with pytest.raises(BlockingIOError):
            ours.send(data)


def test_option_of_a_closed_socket_is_ebadf(sock):
    """As every call on a closed socket."""
    sock.close()
    call = errno_of(lambda: sock.getsockopt(AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, 8))
    assert call == errno.EBADF


def test_dup_shares_options_and_state(switch):
    """Two descriptors, one socket."""
    with vsock.create_server(PORT) as listener, vsock.socket() as sock, sock.dup() as twin:
        set_size(twin, 4096)
        assert get_size(sock) == 4096
        sock.connect((CID_LOCAL, PORT))
        assert twin.getpeername() == (CID_LOCAL, PORT)
        accepted, _ = listener.accept()
        with accepted:
            twin.shutdown(socket.SHUT_WR)
            assert errno_of(lambda: sock.send(b"x")) == errno.EPIPE
            assert errno_of(sock.getpeername) == errno.ENOTCONN


def test_pickling_is_refused(sock):
    """A descriptor number has no meaning in another process."""
    with pytest.raises(TypeError):
        pickle.dumps(sock)

"""`vsock.socket` in all its states: errors and addresses are those of vsock(7).

Everything runs against a real switch with a real userspace guest, ``alpha`` (CID 3); ``beta``
(CID 4) is configured in the switch, but not attached.
"""

import contextlib
import errno
import select
import socket
import time

import pytest

import vsock
from vsock import CID_ANY, CID_HOST, PORT_ANY, Address

PORT = 5000


def poll(
    sock: socket.socket, events: int = select.POLLIN | select.POLLOUT, timeout: float = 0.0
) -> int:
    """The events of `sock` within `timeout` seconds."""
    poller = select.poll()
    poller.register(sock, events)
    return sum(event for _, event in poller.poll(timeout * 1000))


@pytest.fixture
def listener(guest):
    """A listener of the guest alpha on PORT."""
    with guest.create_server(PORT) as listener:
        yield listener


@pytest.fixture
def pair(listener):
    """A connection: the host program's end and the guest's."""
    with vsock.create_connection((3, PORT)) as ours:
        theirs, _ = listener.accept()
        with theirs:
            yield ours, theirs


# Fresh and bound


def test_fresh_socket_asked_for_its_address_says_any():
    """Before bind both parts of the local address are wildcards, without an error."""
    with vsock.socket() as sock:
        assert sock.getsockname() == (CID_ANY, PORT_ANY)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda sock: sock.getpeername(), errno.ENOTCONN),
        (lambda sock: sock.recv(1), errno.ENOTCONN),
        (lambda sock: sock.recv_into(bytearray(1)), errno.ENOTCONN),
        (lambda sock: sock.send(b"x"), errno.ENOTCONN),
        (lambda sock: sock.sendall(b"x"), errno.ENOTCONN),
        (lambda sock: sock.shutdown(socket.SHUT_WR), errno.ENOTCONN),
        (lambda sock: sock.listen(), errno.EINVAL),
        (lambda sock: sock.accept(), errno.EINVAL),
    ],
)
def test_fresh_socket_used_as_if_connected_raises_the_kernels_errno(call, number):
    """Calls that need a connection or a binding fail with AF_VSOCK's errno."""
    with vsock.socket() as sock, pytest.raises(OSError) as caught:  # noqa: PT011 - errno is checked
        call(sock)
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((socket.SOCK_RAW,), errno.ESOCKTNOSUPPORT),
        ((socket.SOCK_STREAM, 6), errno.EPROTONOSUPPORT),
    ],
)
def test_socket_of_an_unknown_kind_raises_the_kernels_errno(arguments, number):
    """Unknown types and protocols fail when the socket is made."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - errno is checked
        vsock.socket(*arguments)
    assert caught.value.errno == number


def test_closed_socket_used_raises_ebadf():
    """After close every operation fails as on any other socket."""
    sock = vsock.socket()
    sock.close()
    for call in (sock.getsockname, sock.getpeername, sock.accept, lambda: sock.bind((CID_ANY, 1))):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


def test_bound_socket_has_its_port_until_closed(switch):
    """A port is taken by bind, for both types at once, and free again after close."""
    with vsock.socket() as first:
        first.bind((CID_ANY, PORT))
        assert first.getsockname() == (CID_ANY, PORT)
        for kind in (vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET):
            with vsock.socket(kind) as second, pytest.raises(OSError, match="in use") as caught:
                second.bind((CID_ANY, PORT))
            assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="Invalid") as caught:
            first.bind((CID_ANY, PORT + 1))
        assert caught.value.errno == errno.EINVAL
    # The switch learns of the close from the socket itself, a moment later.
    deadline = time.monotonic() + 5
    is_free = False
    while not is_free and time.monotonic() < deadline:
        with vsock.socket() as third, contextlib.suppress(OSError):
            third.bind((CID_ANY, PORT))
            is_free = True
    assert is_free


def test_any_port_bound_twice_gives_consecutive_numbers(switch):
    """The switch assigns unprivileged ports in order."""
    with vsock.socket() as first, vsock.socket() as second:
        first.bind((CID_ANY, PORT_ANY))
        second.bind((CID_ANY, PORT_ANY))
        assert first.getsockname().port >= 1024
        assert second.getsockname().port == first.getsockname().port + 1


def test_cid_of_somebody_else_bound_raises_eaddrnotavail(switch):
    """Only CIDs of this machine can be bound."""
    with vsock.socket() as sock, pytest.raises(OSError, match="annot assign") as caught:
        sock.bind((77, PORT))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_bound_socket_used_for_data_raises_enotconn(switch):
    """The descriptor is connected to the switch, which must not receive the data."""
    with vsock.socket() as sock:
        sock.bind((CID_ANY, PORT))
        with pytest.raises(OSError, match="not connected"):
            sock.send(b"x" * 32)
        sock.listen()
        with pytest.raises(OSError, match="not connected"):
            sock.recv(32)
        with pytest.raises(OSError, match="Invalid"):
            sock.connect((3, PORT))


# Connecting


def test_connected_sockets_asked_for_addresses_say_what_the_kernel_says(guest, listener):
    """The client's own CID stays the wildcard; the accepted end has all four numbers."""
    with vsock.create_connection("alpha:5000") as ours:
        theirs, peer = listener.accept()
        with theirs:
            port = ours.getsockname().port
            assert ours.getsockname() == (CID_ANY, port)
            assert ours.getpeername() == (3, PORT)
            assert peer == theirs.getpeername() == (CID_HOST, port)
            assert theirs.getsockname() == (guest.cid, PORT) == (3, PORT)
            assert isinstance(peer, Address)


def test_bound_socket_connected_keeps_its_port(listener):
    """A client may choose its port."""
    with vsock.create_connection((3, PORT), source_address=(CID_ANY, 6000)) as ours:
        assert ours.getsockname() == (CID_ANY, 6000)
        theirs, peer = listener.accept()
        theirs.close()
        assert peer == (CID_HOST, 6000)


def test_connected_socket_connected_again_raises_eisconn(pair):
    """A connected socket cannot connect again."""
    assert pair[0].connect_ex((3, PORT)) == errno.EISCONN


def test_refused_socket_connected_again_connects(guest):
    """A refusal is ECONNRESET; afterwards the socket can connect again."""
    with vsock.socket() as sock:
        with pytest.raises(vsock.ConnectRefused) as caught:
            sock.connect((3, PORT))
        assert caught.value.errno == errno.ECONNRESET
        assert isinstance(caught.value, ConnectionResetError)
        with guest.create_server(PORT) as listener:
            sock.connect((3, PORT))
            listener.accept()[0].close()


@pytest.mark.parametrize("address", [(77, PORT), "nobody:5000"])
def test_unknown_guest_connected_to_raises_enodev(switch, address):
    """For an unused CID and for an unused name."""
    with pytest.raises(vsock.NoSuchGuest) as caught:
        vsock.create_connection(address)
    assert caught.value.errno == errno.ENODEV


def test_guest_that_does_not_answer_connected_to_raises_etimedout(switch):
    """The connect timeout can be set, and ends the attempt with ETIMEDOUT, a TimeoutError."""
    with pytest.raises(vsock.ConnectTimeout) as caught:
        vsock.create_connection((4, PORT), timeout=0.05)
    assert caught.value.errno == errno.ETIMEDOUT


def test_blocking_connect_with_a_shorter_socket_timeout_stays_under_way(switch):
    """settimeout limits the wait; as with every socket, the attempt goes on."""
    with vsock.socket() as sock:
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError) as caught:
            sock.connect((4, PORT))
        assert caught.value.errno is None
        sock.settimeout(0)
        assert sock.connect_ex((4, PORT)) == errno.EALREADY


def test_non_blocking_connect_under_way_is_not_writable_until_the_verdict(switch):
    """EINPROGRESS, no event, then writable with the error in SO_ERROR, once."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        sock.connect_timeout = 0.2
        with pytest.raises(BlockingIOError) as caught:
            sock.connect((4, PORT))
        assert caught.value.errno == errno.EINPROGRESS
        assert poll(sock) == 0
        assert sock.connect_ex((4, PORT)) == errno.EALREADY
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert poll(sock, select.POLLOUT, 5) == select.POLLOUT
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("kind", [vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET])
def test_non_blocking_connect_that_succeeds_becomes_a_clean_stream(guest, kind):
    """After the verdict only data arrives, and the send buffer has its former size."""
    with guest.create_server(PORT, type=kind) as listener, vsock.socket(kind) as sock:
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        sock.setblocking(False)
        assert sock.connect_ex((3, PORT)) == errno.EINPROGRESS
        theirs, _ = listener.accept()
        theirs.send(b"welcome")
        assert poll(sock, select.POLLOUT, 5)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == room
        assert sock.connect_ex((3, PORT)) == errno.EISCONN
        sock.setblocking(True)
        assert sock.recv(100) == b"welcome"
        sock.send(b"thanks")
        assert theirs.recv(100) == b"thanks"
        theirs.close()


def test_data_sent_at_once_arrives_behind_the_verdict(listener):
    """Data that the other side sends at once arrives after the switch's answer."""
    for _ in range(100):
        with vsock.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex((3, PORT))
            theirs, _ = listener.accept()
            with theirs:
                theirs.send(b"welcome")
                assert poll(sock, select.POLLOUT, 5)
                sock.finish_connect()
                sock.setblocking(True)
                assert sock.recv(100) == b"welcome"


def test_non_blocking_connect_written_to_without_a_look_at_so_error_works(listener):
    """A program that only waits for writability may send at once."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex((3, PORT))
        theirs, _ = listener.accept()
        assert poll(sock, select.POLLOUT, 5)
        assert sock.send(b"hello") == 5
        assert theirs.recv(10) == b"hello"
        theirs.close()


def test_non_blocking_connect_refused_can_be_tried_again(guest):
    """After SO_ERROR was read, the socket is in the state before the attempt."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex((3, PORT))
        assert poll(sock, select.POLLOUT, 5)
        with pytest.raises(OSError, match="not connected"):
            sock.recv(1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        with guest.create_server(PORT) as listener:
            assert sock.connect_ex((3, PORT)) == errno.EINPROGRESS
            listener.accept()[0].close()


def test_non_blocking_connect_has_its_port_while_it_waits(switch):
    """The address that the other side will see is known at once, as in the kernel."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        sock.connect_timeout = 0.05
        assert sock.connect_ex((4, PORT)) == errno.EINPROGRESS
        port = sock.getsockname().port
        assert port != vsock.PORT_ANY
        assert poll(sock, select.POLLOUT, 5)
        assert sock.getsockname() == (vsock.CID_ANY, port)


def test_non_blocking_connect_to_nobody_fails_at_once(switch):
    """Errors that the switch finds without the guest are returned by connect itself, once."""
    with vsock.socket() as sock, vsock.socket(vsock.SOCK_SEQPACKET) as messages:
        for one, number in ((sock, errno.ENODEV), (messages, errno.ESOCKTNOSUPPORT)):
            room = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            one.setblocking(False)
            assert one.connect_ex((99, PORT)) == number
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == room
        assert sock.connect_ex((4, PORT)) == errno.EINPROGRESS
        # Guest 4 is not attached and has not negotiated SEQPACKET.
        assert messages.connect_ex((4, PORT)) == errno.ESOCKTNOSUPPORT


# Listening


def test_listener_without_connections_accepts_nothing(listener):
    """An idle listener is not readable; a timeout ends accept as on every socket."""
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert poll(listener) & select.POLLIN == 0
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.settimeout(0.01)
    with pytest.raises(TimeoutError):
        listener.accept()


def test_listener_with_a_connection_is_readable_and_gives_a_blocking_socket(listener):
    """poll reports a waiting connection; the accepted socket does not inherit the non-blocking mode."""
    listener.setblocking(False)
    with vsock.create_connection((3, PORT)):
        assert poll(listener, select.POLLIN, 5) == select.POLLIN
        theirs, _ = listener.accept()
        with theirs:
            assert theirs.getblocking()
            assert not theirs.get_inheritable()
        assert poll(listener) & select.POLLIN == 0


def test_backlog_full_refuses_the_next_connection(guest):
    """Backlog 0 lets one connection wait, as in the kernel, and accept makes room for the next."""
    with guest.create_server(PORT, backlog=0) as listener, vsock.create_connection((3, PORT)):
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((3, PORT))
        listener.accept()[0].close()
        with connected_soon() as ours:
            listener.accept()[0].close()
            assert ours.recv(1) == b""


def test_backlog_made_larger_lets_more_wait(guest):
    """The second listen changes the backlog."""
    with guest.create_server(PORT, backlog=0) as listener, vsock.create_connection((3, PORT)):
        listener.listen(1)
        with connected_soon(), pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((3, PORT))


def connected_soon() -> socket.socket:
    """A connection to PORT; retries until the switch has applied a change that has no reply."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return vsock.create_connection((3, PORT))
        except vsock.ConnectRefused:
            assert time.monotonic() < deadline


def test_listener_told_to_listen_again_has_nothing_to_accept(listener):
    """The reply to the second listen, which asyncio makes, is not taken for a connection."""
    listener.listen(5)
    listener.settimeout(0.05)
    with pytest.raises(TimeoutError):
        listener.accept()


# Connected


def test_connection_half_closed_ends_one_direction(pair):
    """After SHUT_WR the other side reads the end of the data, and its answer still arrives."""
    ours, theirs = pair
    ours.sendall(b"question")
    ours.shutdown(socket.SHUT_WR)
    assert theirs.recv(100) == b"question"
    assert theirs.recv(100) == b""
    theirs.sendall(b"answer")
    assert ours.recv(100) == b"answer"
    with pytest.raises(BrokenPipeError):
        ours.send(b"more")


def test_connection_shut_down_has_no_peer_and_cannot_be_connected(pair):
    """After shutdown getpeername is ENOTCONN and connect EINVAL, as in AF_VSOCK."""
    ours, _ = pair
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError, match="not connected"):
        ours.getpeername()
    assert ours.connect_ex((3, PORT)) == errno.EINVAL


def test_connection_closed_by_the_other_side_reads_data_and_then_its_end(pair):
    """Data sent before a close arrives, and the end of file is no error."""
    ours, theirs = pair
    ours.sendall(b"never read")
    theirs.sendall(b"goodbye")
    theirs.close()
    assert ours.recv(100) == b"goodbye"
    assert ours.recv(100) == b""


def test_seqpacket_messages_sent_keep_their_boundaries(guest):
    """Each send is one receive, whatever the sizes."""
    with guest.create_server(PORT, type=vsock.SOCK_SEQPACKET) as listener:
        with vsock.create_connection((3, PORT), type=vsock.SOCK_SEQPACKET) as ours:
            theirs, _ = listener.accept()
            with theirs:
                for message in (b"a", b"bb" * 5000, b"ccc"):
                    ours.send(message)
                assert [len(theirs.recv(1 << 16)) for _ in range(3)] == [1, 10000, 3]


def test_listener_of_the_other_type_refuses(listener):
    """STREAM and SEQPACKET share their ports but not their connections."""
    with pytest.raises(vsock.ConnectRefused):
        vsock.create_connection((3, PORT), type=vsock.SOCK_SEQPACKET)


def test_local_cid_asked_is_that_of_the_node(guest):
    """The host is 2, and a guest has the CID of its device."""
    assert vsock.get_local_cid() == CID_HOST
    assert vsock.get_local_cid(transport=guest.transport) == guest.cid == 3


def test_switch_gone_while_accepting_raises_switch_gone(runtime_dir):
    """accept ends when the switch ends."""
    with vsock.Switch(runtime_dir=runtime_dir):
        listener = vsock.create_server(PORT)
    with listener, pytest.raises(vsock.SwitchGone):
        listener.accept()


def test_switch_gone_while_connecting_raises_enodev(runtime_dir):
    """A connect ends with an error soon after the switch ends."""
    with vsock.Switch({"alpha": 3}, runtime_dir=runtime_dir):
        sock = vsock.socket()
        sock.setblocking(False)
        sock.connect_ex((3, PORT))
    with sock:
        assert poll(sock, select.POLLOUT, 5)
        with pytest.raises(vsock.TransportError) as caught:
            sock.finish_connect()
        assert caught.value.errno == errno.ENODEV

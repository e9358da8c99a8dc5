"""SOCK_DGRAM as VMCI has it: best effort, with boundaries, without connections (kernel-semantics, 8)."""

import asyncio
import contextlib
import errno
import os
import select
import socket
import threading

import pytest

import vsock
from vsock import CID_ANY, CID_HOST, CID_LOCAL, PORT_ANY, SOCK_DGRAM, Address

PORT = 5000
LONGEST = 69608


def errno_of(call) -> int | None:
    """The errno that `call` raises."""
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


@pytest.fixture
def receiver(switch):
    """A socket of the host, bound to PORT."""
    with vsock.socket(SOCK_DGRAM) as sock:
        sock.bind((CID_ANY, PORT))
        sock.settimeout(10)
        yield sock


@pytest.fixture
def sender(switch):
    """Another socket of the host, not bound."""
    with vsock.socket(SOCK_DGRAM) as sock:
        sock.settimeout(10)
        yield sock


def test_fresh_socket_says_what_it_is():
    """Its type and addresses; it has no connection and no options of level AF_VSOCK."""
    with vsock.socket(SOCK_DGRAM) as sock:
        assert isinstance(sock, vsock.socket)
        assert sock.type == SOCK_DGRAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == SOCK_DGRAM
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == 40
        assert sock.getsockname() == (CID_ANY, PORT_ANY)
        for call, number in (
            (sock.getpeername, errno.ENOTCONN),
            (sock.listen, errno.EOPNOTSUPP),
            (sock.accept, errno.EOPNOTSUPP),
            (lambda: sock.getsockopt(40, 0, 8), errno.EOPNOTSUPP),
            (lambda: sock.setsockopt(40, 0, bytes(8)), errno.EOPNOTSUPP),
            (lambda: sock.send(b"x"), errno.EINVAL),
            (lambda: sock.shutdown(socket.SHUT_WR), errno.ENOTCONN),
        ):
            assert errno_of(call) == number


@pytest.mark.parametrize("cid", [CID_HOST, CID_LOCAL, CID_ANY])
def test_datagrams_between_host_programs_keep_boundaries_and_tell_the_sender(receiver, sender, cid):
    """In order, whole, with the sender's address; its first send chooses a port."""
    messages = [b"one", b"", b"three" * 1000, bytes(LONGEST)]
    for message in messages:
        assert sender.sendto(message, (cid, PORT)) == len(message)
    ours = sender.getsockname()
    assert ours.port >= 1024
    for message in messages:
        assert receiver.recvfrom(1 << 17) == (message, (CID_HOST, ours.port))
    receiver.sendto(b"answer", (CID_HOST, ours.port))
    assert sender.recvfrom(100) == (b"answer", (CID_HOST, PORT))


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, LONGEST])
def test_datagrams_between_host_and_guest_arrive_whole(guest, receiver, size):
    """Over the virtqueues in both directions, in several packets if necessary."""
    data = os.urandom(size)
    with guest.socket(SOCK_DGRAM) as theirs:
        theirs.settimeout(10)
        theirs.bind((CID_ANY, PORT))
        receiver.sendto(data, (3, PORT))
        assert theirs.recvfrom(1 << 17) == (data, (CID_HOST, PORT))
        theirs.sendto(data, (CID_HOST, PORT))
        assert receiver.recvfrom(1 << 17) == (data, (3, PORT))


def test_datagrams_of_several_senders_are_not_mixed(guest, receiver):
    """The packets of one datagram follow each other on the link."""
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(guest.socket(SOCK_DGRAM)) for _ in range(4)]

        done = threading.Event()

        def send(sock: vsock.socket, mark: int) -> None:
            # Delivery is best effort, so each sends until all have been received.
            while not done.is_set():
                sock.sendto(bytes([mark]) * LONGEST, (CID_HOST, PORT))

        threads = [threading.Thread(target=send, args=(s, n)) for n, s in enumerate(senders)]
        for thread in threads:
            thread.start()
        receiver.settimeout(20)
        seen: set[tuple[int, int]] = set()
        try:
            while len({mark for mark, _ in seen}) < 4:
                data, (cid, port) = receiver.recvfrom(1 << 17)
                assert len(data) == LONGEST
                assert len(set(data)) == 1
                assert cid == 3
                seen.add((data[0], port))
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert len(seen) == len({port for _, port in seen}) == 4


@pytest.mark.parametrize(
    ("to", "number"),
    [
        ((CID_HOST, 7777), errno.EHOSTUNREACH),
        ((77, PORT), errno.EHOSTUNREACH),
        ((4, PORT), errno.EHOSTUNREACH),
        ((CID_HOST, PORT_ANY), errno.EINVAL),
        ((0, PORT), errno.EINVAL),
    ],
)
def test_datagram_to_where_none_can_go_is_an_error(switch, sender, to, number):
    """No socket on this node, no such guest, a guest without datagrams, no destination."""
    assert errno_of(lambda: sender.sendto(b"x", to)) == number


def test_datagram_to_a_guests_port_that_nobody_has_is_lost_silently(guest, sender):
    """An unbound port beyond the link is no error of the sender."""
    assert sender.sendto(b"x", (3, 7777)) == 1
    with guest.socket(SOCK_DGRAM) as theirs:
        assert (
            theirs.sendto(b"x", (4, PORT)) == 1
        )  # no guest is attached there, and the sender gets no error


@pytest.mark.parametrize("size", [0, 1, 65537, LONGEST])
def test_datagrams_between_guests_that_share_a_group_arrive_whole(switch, guest, size):
    """Both ways, with the sender's address."""
    payload = os.urandom(size)
    with (
        vsock.Guest(switch.socket_path("beta")) as other,
        other.socket(SOCK_DGRAM) as theirs,
        guest.socket(SOCK_DGRAM) as ours,
    ):
        theirs.bind((CID_ANY, PORT))
        for sock in (theirs, ours):
            sock.settimeout(10)
        ours.sendto(payload, (4, PORT))
        received, sender = theirs.recvfrom(1 << 17)
        assert (received, sender) == (payload, (3, ours.getsockname().port))
        theirs.sendto(b"answer", sender)
        assert ours.recvfrom(100) == (b"answer", (4, PORT))


def test_datagram_between_guests_without_a_group_in_common_is_lost(switch, guest, receiver):
    """The policy is that of connections; a later allowed datagram arrives."""
    with (
        vsock.Guest(switch.socket_path("gamma")) as stranger,
        vsock.Guest(switch.socket_path("beta")) as friend,
        stranger.socket(SOCK_DGRAM) as refused,
        friend.socket(SOCK_DGRAM) as allowed,
        guest.socket(SOCK_DGRAM) as theirs,
    ):
        theirs.bind((CID_ANY, PORT))
        theirs.settimeout(10)
        assert refused.sendto(b"refused", (3, PORT)) == 7
        refused.sendto(b"mark", (CID_HOST, PORT))
        assert (
            receiver.recvfrom(100)[0] == b"mark"
        )  # the switch has processed the datagrams before this one
        assert allowed.sendto(b"allowed", (3, PORT)) == 7
        assert theirs.recvfrom(100)[0] == b"allowed"


@pytest.mark.parametrize(("size", "number"), [(LONGEST, 0), (LONGEST + 1, errno.EMSGSIZE)])
def test_datagram_longer_than_17_pages_is_emsgsize(receiver, sender, size, number):
    """VMCI's limit."""
    assert errno_of(lambda: sender.sendto(bytes(size), (CID_HOST, PORT))) == number


def test_datagram_longer_than_the_buffer_is_cut(receiver, sender):
    """MSG_TRUNC is returned; given as a flag it has no effect; a peek leaves the datagram."""
    for _ in range(3):
        sender.sendto(b"0123456789", (CID_HOST, PORT))
    assert receiver.recvmsg(4, 0, socket.MSG_PEEK)[0] == b"0123"
    assert receiver.recvmsg(4)[::2] == (b"0123", socket.MSG_TRUNC)
    assert receiver.recv(4, socket.MSG_TRUNC) == b"0123"
    buffer = bytearray(20)
    assert receiver.recvfrom_into(buffer)[0] == 10
    receiver.settimeout(None)
    assert errno_of(lambda: receiver.recv(1, socket.MSG_DONTWAIT)) == errno.EAGAIN
    assert errno_of(lambda: receiver.recv(1, socket.MSG_OOB)) == errno.EOPNOTSUPP
    assert errno_of(lambda: sender.send(b"x", socket.MSG_OOB)) == errno.EOPNOTSUPP


def test_connected_socket_has_a_destination_and_receives_from_all(receiver, sender):
    """connect sets the default destination, filters nothing, and can be repeated."""
    sender.connect((CID_HOST, PORT))
    assert sender.getpeername() == (CID_HOST, PORT)
    sender.send(b"to the default")
    assert receiver.recv(100) == b"to the default"
    with vsock.socket(SOCK_DGRAM) as other:
        other.sendto(b"from another", (CID_HOST, sender.getsockname().port))
        assert sender.recv(100) == b"from another"
    sender.connect((CID_HOST, 7777))
    assert errno_of(lambda: sender.send(b"x")) == errno.EHOSTUNREACH
    assert sender.sendto(b"x", (CID_HOST, PORT)) == 1
    sender.shutdown(socket.SHUT_WR)
    assert errno_of(lambda: sender.send(b"x")) == errno.EPIPE


def test_ports_of_datagrams_are_a_space_of_their_own(receiver):
    """The same number for a stream and for datagrams; the usual errors of bind."""
    with vsock.create_server(PORT), vsock.socket(SOCK_DGRAM) as other:
        assert errno_of(lambda: other.bind((CID_ANY, PORT))) == errno.EADDRINUSE
        assert errno_of(lambda: other.bind((77, PORT + 1))) == errno.EADDRNOTAVAIL
        other.bind((CID_HOST, PORT + 1))
        assert other.getsockname() == (CID_HOST, PORT + 1)
        assert errno_of(lambda: other.bind((CID_ANY, PORT + 2))) == errno.EINVAL
    receiver.close()
    deadline = threading.Event()
    for _ in range(1000):
        with vsock.socket(SOCK_DGRAM) as again:
            if errno_of(lambda again=again: again.bind((CID_ANY, PORT))) == 0:
                return
        deadline.wait(0.01)
    pytest.fail("the port of a closed socket stays taken")


def test_receiver_that_does_not_receive_loses_datagrams_and_stops_nobody(receiver, sender):
    """Best effort: sends do not fail, queued datagrams are whole, later ones arrive again."""
    for number in range(300):
        sender.sendto(number.to_bytes(4, "big") * 1000, (CID_HOST, PORT))
    receiver.settimeout(0.2)
    got = []
    with contextlib.suppress(TimeoutError):
        while True:
            data = receiver.recv(1 << 17)
            assert len(data) == 4000
            got.append(int.from_bytes(data[:4], "big"))
    assert got == sorted(got)
    assert 0 < len(got) < 300
    sender.sendto(b"again", (CID_HOST, PORT))
    receiver.settimeout(10)
    assert receiver.recv(100) == b"again"


def test_socket_is_readable_when_a_datagram_waits(receiver, sender):
    """It is always writable."""
    assert select.select([receiver], [], [], 0)[0] == []
    sender.sendto(b"x", (CID_HOST, PORT))
    assert select.select([receiver], [], [], 10)[0] == [receiver]
    assert select.select([], [sender], [], 0)[1] == [sender]


def test_dup_and_fork_send_and_receive_for_the_same_socket(receiver, sender):
    """All descriptors have the same port."""
    sender.sendto(b"first", (CID_HOST, PORT))
    with sender.dup() as twin:
        twin.sendto(b"twin", (CID_HOST, PORT))
    child = os.fork()
    if child == 0:
        sender.sendto(b"child", (CID_HOST, PORT))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    sender.sendto(b"last", (CID_HOST, PORT))
    address = Address(CID_HOST, sender.getsockname().port)
    assert [receiver.recvfrom(100) for _ in range(4)] == [
        (text, address) for text in (b"first", b"twin", b"child", b"last")
    ]


async def test_asyncio_receives_and_sends_datagrams(receiver, sender):
    """sock_recvfrom, sock_sendto, and an endpoint of protocols."""
    loop = asyncio.get_running_loop()
    receiver.setblocking(False)
    sender.setblocking(False)
    waiting = asyncio.ensure_future(loop.sock_recvfrom(receiver, 100))
    await loop.sock_sendto(sender, b"x", (CID_HOST, PORT))
    data, address = await waiting
    assert (data, address.cid) == (b"x", CID_HOST)
    got = loop.create_future()

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            got.set_result((data, addr))

    transport, _ = await loop.create_datagram_endpoint(Protocol, sock=sender.dup())
    receiver.sendto(b"to the endpoint", address)
    assert (await got)[0] == b"to the endpoint"
    transport.close()
    await asyncio.sleep(0)


def test_number_of_anothers_socket_cannot_be_sent_from(switch, sender):
    """A number that is no socket of this program is EBADF."""
    sender.bind((CID_ANY, PORT_ANY))
    sender._state.number = 12345
    assert errno_of(lambda: sender.sendto(b"x", (CID_HOST, PORT))) == errno.EBADF

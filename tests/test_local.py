"""Local communication: CID 1, and a node's own CID, connect two programs of the node.

On the host and in a userspace guest. The peer's CID is 1, as with the kernel's loopback transport
(kernel-semantics, 12.11).
"""

import errno
import socket
import threading

import pytest

import vsock
from vsock import CID_ANY, CID_HOST, CID_LOCAL

PORT = 5000


@pytest.fixture(params=["host", "guest"])
def node(request, guest):
    """The value of ``transport=`` for a program of the switch or of the guest, and its CID."""
    return (None, CID_HOST) if request.param == "host" else (guest.transport, guest.cid)


@pytest.mark.parametrize("kind", [vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET])
@pytest.mark.parametrize("by", ["local", "own"])
def test_programs_of_one_node_see_the_addresses_that_loopback_gives(node, kind, by):
    """The client's CID is 1; the server's is the one to which the client connected."""
    transport, own = node
    cid = CID_LOCAL if by == "local" else own
    with (
        vsock.create_server(PORT, type=kind, transport=transport) as listener,
        vsock.create_connection((cid, PORT), type=kind, transport=transport) as ours,
    ):
        theirs, peer = listener.accept()
        with theirs:
            assert peer == theirs.getpeername() == (CID_LOCAL, ours.getsockname()[1])
            assert theirs.getsockname() == ours.getpeername() == (cid, PORT)
            assert ours.getsockname()[0] == CID_ANY
            ours.sendall(b"to the listener")
            assert theirs.recv(100) == b"to the listener"
            theirs.sendall(b"and back")
            assert ours.recv(100) == b"and back"
            ours.shutdown(socket.SHUT_WR)
            assert theirs.recv(1) == b""
            theirs.sendall(b"still")
            assert ours.recv(100) == b"still"


def test_client_bound_to_an_own_cid_is_renamed_to_loopback(switch):
    """As in the kernel, the CID of a bound client becomes that of the transport."""
    with (
        vsock.create_server(PORT),
        vsock.create_connection((CID_LOCAL, PORT), source_address=(CID_HOST, 6000)) as ours,
    ):
        assert ours.getsockname() == (CID_LOCAL, 6000)


def test_listener_on_loopback_is_not_reached_under_another_cid(switch):
    """Two listeners share a port if each is bound to a CID of its own."""
    with (
        vsock.create_server((CID_LOCAL, PORT)) as local,
        vsock.create_server((CID_HOST, PORT)) as host,
    ):
        for cid, listener in ((CID_LOCAL, local), (CID_HOST, host)):
            with vsock.create_connection((cid, PORT)):
                accepted, _ = listener.accept()
                assert accepted.getsockname() == (cid, PORT)
                accepted.close()


def test_guest_cannot_reach_the_hosts_loopback(guest):
    """CID 1 never leaves the machine."""
    with vsock.create_server(PORT), pytest.raises(vsock.ConnectRefused):
        guest.create_connection((CID_LOCAL, PORT))


def test_loopback_connect_that_nobody_accepts_is_refused(switch):
    """No listener, the wrong type, or a full queue: ECONNRESET, at once."""
    with pytest.raises(vsock.ConnectRefused):
        vsock.create_connection((CID_LOCAL, PORT))
    with vsock.create_server(PORT, backlog=0, type=vsock.SOCK_SEQPACKET):
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((CID_LOCAL, PORT))
        with vsock.create_connection((CID_LOCAL, PORT), type=vsock.SOCK_SEQPACKET):
            with pytest.raises(vsock.ConnectRefused) as caught:
                vsock.create_connection((CID_LOCAL, PORT), type=vsock.SOCK_SEQPACKET)
            assert caught.value.errno == errno.ECONNRESET


def test_loopback_messages_keep_their_boundaries(switch):
    """SEQPACKET over loopback is SEQPACKET."""
    sizes = [1, 4096, 65536, 65537, 100_000]
    with (
        vsock.create_server(PORT, type=vsock.SOCK_SEQPACKET) as listener,
        vsock.create_connection((CID_LOCAL, PORT), type=vsock.SOCK_SEQPACKET) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:

            def send() -> None:
                for size in sizes:
                    ours.send(bytes(size))

            sender = threading.Thread(target=send)
            sender.start()
            assert [len(theirs.recv(1 << 20)) for _ in sizes] == sizes
            sender.join()


def test_host_cid_from_a_guest_is_the_host_not_loopback(guest):
    """In a guest CID 2 is the switch's machine."""
    with vsock.create_server(PORT) as listener, guest.create_connection((CID_HOST, PORT)):
        accepted, peer = listener.accept()
        accepted.close()
        assert peer[0] == guest.cid


def test_port_of_a_closed_socket_can_be_bound_at_once(switch):
    """As soon as `close` has returned, whichever of the two events the switch reads first."""
    for kind in (vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET, vsock.SOCK_DGRAM):
        for _ in range(200):
            with vsock.socket(kind) as sock:
                sock.bind((CID_ANY, PORT))
                if kind != vsock.SOCK_DGRAM:
                    sock.listen(1)

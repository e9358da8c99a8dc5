"""A guest's name in an address needs no further connection to the switch, and means the same as the CID."""

import errno
import select
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import vsock
from vsock import CID_HOST, PORT_ANY, Address, NamedAddress
from vsock.guest import Guest

PORT = 5000

_paths: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _paths is not None and event == "socket.connect" and isinstance(arguments[1], str):
        _paths.append(arguments[1])


sys.addaudithook(_audit)


@pytest.fixture
def connections(runtime_dir) -> Iterator[Callable[[], list[str]]]:
    """The names of the switch's sockets to which this process has connected since the test began."""
    global _paths  # noqa: PLW0603 - an audit hook cannot be removed
    _paths = []
    yield lambda: [
        path.rpartition("/")[2] for path in _paths or () if path.startswith(str(runtime_dir))
    ]
    _paths = None


@pytest.fixture
def listener(guest: Guest) -> Iterator[socket.socket]:
    """A listener of the guest alpha on PORT."""
    with guest.create_server(PORT) as listener:
        yield listener


@pytest.mark.parametrize("address", ["alpha:5000", (3, PORT)])
def test_connect_is_one_connection_to_the_switch(listener, connections, address):
    """By name as by CID, also if both addresses are read; another socket's connect is a second connection."""
    with vsock.create_connection(address) as ours:
        assert ours.getpeername() == (3, PORT)
        assert connections() == ["stream"]
        listener.accept()[0].close()


def test_name_is_looked_up_also_for_a_bound_socket(listener, connections):
    """The node looks it up: a client with a port cannot send RESOLVE."""
    with vsock.create_connection("alpha:5000", source_address=(vsock.CID_ANY, 6000)) as ours:
        assert (ours.getsockname(), ours.getpeername()) == ((vsock.CID_ANY, 6000), (3, PORT))
        theirs, peer = listener.accept()
        theirs.close()
        assert peer == (CID_HOST, 6000)
        assert connections() == ["stream"]


def test_non_blocking_connect_by_name_knows_the_cid_while_it_waits(switch, connections):
    """The peer's address is known after the connect, also in duplicates of the socket."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex("beta:5000") == errno.EINPROGRESS
        with sock.dup() as twin, vsock.socket.from_fd(sock.dup().detach()) as other:
            other.setblocking(False)
            for one in (sock, twin, other):
                assert one.connect_ex("beta:5000") == errno.EALREADY
                assert one.getsockname().port != PORT_ANY
        assert connections() == ["stream"]


def test_connection_of_a_descriptor_that_was_passed_on_knows_its_peer(listener):
    """The peer's CID is kept in the socket."""
    with vsock.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex("alpha:5000") == errno.EINPROGRESS
        theirs, _ = listener.accept()
        with theirs, vsock.socket.from_fd(sock.detach()) as again:
            assert select.select([], [again], [], 5)[1]
            again.finish_connect()
            assert again.getpeername() == (3, PORT)


@pytest.mark.parametrize("is_blocking", [True, False])
@pytest.mark.parametrize("kind", [vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET])
def test_unknown_name_connected_to_is_no_such_guest(switch, connections, kind, is_blocking):
    """The errno and the message are those of RESOLVE; the socket has no port and can try again."""
    with vsock.socket(kind) as sock:
        sock.setblocking(is_blocking)
        room = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        for name in ("nobody", "n" * 300, ""):
            with pytest.raises(
                vsock.NoSuchGuest, match=r"^\[Errno 19\] guest 'n*o?b?o?d?y?': no such"
            ) as caught:
                sock.connect(NamedAddress(name, PORT))
            assert caught.value.errno == errno.ENODEV
        assert sock.getsockname() == (vsock.CID_ANY, PORT_ANY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == room
        assert len(connections()) == 1


def test_unknown_name_in_a_guest_is_no_such_guest(guest):
    """A guest has no names, and does not ask its host for one."""
    with pytest.raises(vsock.NoSuchGuest, match="guest 'beta'"):
        guest.create_connection("beta:5000")


def test_guest_that_is_known_and_not_there_times_out_by_its_address(switch):
    """After the name is resolved, errors contain the CID."""
    with pytest.raises(vsock.ConnectTimeout, match="connect to 4:5000"):
        vsock.create_connection("beta:5000", timeout=0.05)


def test_name_bound_to_is_asked_for_over_the_same_connection(switch, connections):
    """A name is that of a guest, so bind fails; the name is resolved once."""
    with vsock.socket() as sock:
        with pytest.raises(OSError, match="bind 3:5000") as caught:
            sock.bind("alpha:5000")
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(vsock.NoSuchGuest, match="guest 'nobody'"):
            sock.bind("nobody:5000")
        assert connections() == ["stream"]


async def test_asyncio_connects_by_name_with_one_connection(guest, connections):
    """The same steps, with the event loop's waits."""

    async def serve(_reader, writer):
        writer.close()

    async with await guest.start_server(serve, PORT):
        before = len(connections())
        reader, writer = await vsock.open_connection("alpha:5000")
        assert writer.get_extra_info("peername") == (3, PORT)
        assert len(connections()) == before + 1
        assert await reader.read() == b""
        writer.close()


def test_datagrams_by_name_take_no_further_connection(guest, connections):
    """A sending socket has two connections, for any number of names."""
    with (
        guest.socket(vsock.SOCK_DGRAM) as theirs,
        vsock.socket(vsock.SOCK_DGRAM) as ours,
    ):
        theirs.bind((vsock.CID_ANY, PORT))
        for _ in range(3):
            ours.sendto(b"x", "alpha:5000")
            assert theirs.recv(10) == b"x"
        with pytest.raises(vsock.NoSuchGuest, match="guest 'nobody'"):
            ours.sendto(b"x", "nobody:5000")
        ours.connect("alpha:5000")
        assert ours.getpeername() == Address(3, PORT)
        assert connections() == ["dgram", "dgram"]

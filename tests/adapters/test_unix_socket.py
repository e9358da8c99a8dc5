"""`vsock.adapters.unix_socket`: paths that stand for vsock addresses."""

import contextlib
import socket
import stat

import pytest

import vsock
from vsock.adapters.unix_socket import client_path, server_path
from vsock.errors import AddressError


def test_client_path_leads_to_a_guest(guest):
    """Half-closes too. The socket goes with the block."""
    with guest.create_server(5000) as listener, client_path("alpha:5000") as path:
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(str(path))
            ours.sendall(b"question")
            ours.shutdown(socket.SHUT_WR)
            theirs, _ = listener.accept()
            with theirs, theirs.makefile("rb") as stream:
                assert stream.read() == b"question"
                theirs.sendall(b"answer")
            with ours.makefile("rb") as stream:
                assert stream.read() == b"answer"
    assert not path.parent.exists()


def test_only_this_user_can_reach_the_socket(switch):
    """It is in a directory of its own."""
    with client_path("alpha:5000") as path:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_server_path_is_reached_by_guests(guest):
    """What listens there serves the vsock port."""
    with server_path(5000) as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with guest.create_connection((vsock.CID_HOST, 5000)) as theirs:
            ours, _ = listener.accept()
            with ours:
                theirs.sendall(b"hello")
                assert ours.recv(5) == b"hello"
    assert not path.parent.exists()


def test_client_is_reset_while_no_server_listens(guest):
    """It is no silent wait."""
    with server_path(5000), guest.create_connection((vsock.CID_HOST, 5000)) as theirs:
        theirs.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            assert theirs.recv(1) == b""


@pytest.mark.parametrize("path", [client_path, server_path])
def test_wrong_address_is_an_error_at_once(switch, path):
    """Before anything listens."""
    with pytest.raises(AddressError), path("alpha"):
        pass


def test_port_in_use_is_an_error_at_once(switch):
    """And not at the first connection."""
    with vsock.create_server(5000), pytest.raises(OSError, match="in use"), server_path(5000):
        pass

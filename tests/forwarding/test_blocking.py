"""`BlockingForwarder`: a forwarder in a thread."""

import socket
import time

import pytest

import vsock
from vsock.errors import UsageError
from vsock.forwarding import BlockingForwarder
from vsock.transports.unix import UnixAddress


def test_forwards_from_start_to_stop(guest, runtime_dir):
    """And again; its socket goes each time."""
    path = runtime_dir / "forwarded"
    forwarder = BlockingForwarder(UnixAddress(str(path)), vsock.parse("alpha:5000"))
    with guest.create_server(5000) as listener:
        for _ in range(2):
            forwarder.start()
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(str(path))
                theirs, _ = listener.accept()
                with theirs:
                    theirs.sendall(b"hello")
                    assert ours.recv(5) == b"hello"
                    forwarder.stop()
                    # What was open ends with it.
                    assert ours.recv(1) == b""
            assert not path.exists()
        forwarder.stop()


def test_second_start_is_an_error(guest, runtime_dir):
    """The first goes on."""
    path = runtime_dir / "forwarded"
    with BlockingForwarder(UnixAddress(str(path)), vsock.parse("alpha:5000")) as forwarder:
        with pytest.raises(UsageError):
            forwarder.start()
        assert path.exists()


def test_start_says_why_it_cannot_listen(guest):
    """In the thread that asked; afterwards another start can succeed."""
    forwarder = BlockingForwarder(vsock.parse("host:5000"), vsock.parse("alpha:5000"))
    with vsock.create_server(5000), pytest.raises(OSError, match="in use"):
        forwarder.start()
    with forwarder:
        pass


def test_connection_that_comes_to_nothing_is_logged(guest, runtime_dir, caplog):
    """With the reason, which the library at the Unix socket does not learn."""
    path = runtime_dir / "forwarded"
    with BlockingForwarder(UnixAddress(str(path)), vsock.parse("alpha:9")):
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(str(path))
            assert ours.recv(1) == b""
    assert "alpha:9" in caplog.text
    assert "refused" in caplog.text


def test_end_of_the_switch_is_logged(runtime_dir, caplog):
    """Stopping is then no error."""
    with vsock.Switch(runtime_dir=runtime_dir) as switch:
        forwarder = BlockingForwarder(
            vsock.parse("host:5000"), UnixAddress("/nowhere"), transport=switch.transport
        )
        forwarder.start()
    deadline = time.monotonic() + 30
    while "not forwarded any more" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    forwarder.stop()

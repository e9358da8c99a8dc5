"""`vsock.adapters.multiprocessing`: connections of multiprocessing over vsock, and hostile ends of them."""

import contextlib
import multiprocessing.connection
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError

import pytest

import vsock
from vsock.adapters import multiprocessing as adapter
from vsock.adapters.multiprocessing import Client, Listener

PORT = 6000
KEY = b"a key"
THINGS = [None, {"a": [1, 2.5, "x"]}, b"\0" * 3_000_000]


@contextlib.contextmanager
def pair(guest, *, at_host, key=KEY, other_key=KEY):
    """A connection between host and guest: (the accepted end, the connected end)."""
    here, there = (None, guest.transport) if at_host else (guest.transport, None)
    with (
        Listener(PORT, authkey=key, transport=here) as listener,
        ThreadPoolExecutor() as pool,
    ):
        address = f"{'host' if at_host else 'alpha'}:{PORT}"
        connecting = pool.submit(Client, address, authkey=other_key, transport=there)
        with listener.accept() as accepted, connecting.result() as connected:
            yield accepted, connected


@pytest.mark.parametrize("at_host", [True, False])
@pytest.mark.parametrize("key", [KEY, None])
def test_objects_go_both_ways(guest, at_host, key):
    """With and without an authkey, whoever listens."""
    with (
        pair(guest, at_host=at_host, key=key, other_key=key) as (one, other),
        ThreadPoolExecutor() as pool,
    ):
        for thing in THINGS:
            for sender, receiver in ((one, other), (other, one)):
                sending = pool.submit(sender.send, thing)
                assert receiver.recv() == thing
                sending.result()


def test_connections_can_be_waited_for(guest):
    """By the standard library's wait."""
    with pair(guest, at_host=True) as (one, other):
        assert multiprocessing.connection.wait([one], timeout=0) == []
        other.send("x")
        assert multiprocessing.connection.wait([one], timeout=30) == [one]
        other.close()
        assert one.recv() == "x"
        with pytest.raises(EOFError):
            one.recv()


def test_listener_says_where_it_is_and_who_came(guest):
    """Addresses of vsock."""
    with Listener(PORT) as listener:
        assert listener.last_accepted is None
        with guest.create_connection((vsock.CID_HOST, PORT)), listener.accept():
            assert str(listener.last_accepted).startswith("3:")
            assert listener.address.port == PORT


def test_wrong_key_is_refused_on_both_sides(guest):
    """The listener goes on."""
    with Listener(PORT, authkey=KEY) as listener, ThreadPoolExecutor() as pool:
        wrong = pool.submit(Client, f"host:{PORT}", authkey=b"other", transport=guest.transport)
        with pytest.raises(AuthenticationError, match="3:"):
            listener.accept()
        with pytest.raises(AuthenticationError):
            wrong.result()
        right = pool.submit(Client, f"host:{PORT}", authkey=KEY, transport=guest.transport)
        with listener.accept() as accepted, right.result() as connected:
            connected.send(1)
            assert accepted.recv() == 1


@pytest.mark.parametrize(
    "said",
    [b"", b"\xff" * 100, b"\x7f\xff\xff\xff", b"\0\0\0\x05hello", b"\0\0\0\x00", bytes(1000)],
)
def test_nonsense_instead_of_an_answer_is_refused(guest, said):
    """Whatever it is, it is one error, and the listener goes on."""
    with Listener(PORT, authkey=KEY) as listener:
        with guest.create_connection((vsock.CID_HOST, PORT)) as hostile:
            hostile.sendall(said)
            hostile.shutdown(1)
            with pytest.raises(AuthenticationError, match="not authenticated"):
                listener.accept()


def test_silence_instead_of_an_answer_is_refused_in_time(guest, monkeypatch):
    """Also if a byte comes now and then."""
    monkeypatch.setattr(adapter, "AUTHENTICATION_SECONDS", 0.5)
    with (
        Listener(PORT, authkey=KEY) as listener,
        guest.create_connection((vsock.CID_HOST, PORT)) as hostile,
    ):
        ended = threading.Event()

        def dribble() -> None:
            with contextlib.suppress(OSError):
                hostile.sendall(b"\0\0\0\x7f")
                while not ended.wait(0.05):
                    hostile.sendall(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(AuthenticationError, match="no answer within 0.5 s"):
            listener.accept()
        assert time.monotonic() - begin < 30
        ended.set()
        thread.join()


def test_listener_of_a_hostile_guest_ends_the_client(guest, monkeypatch):
    """Silence, and what is no challenge."""
    monkeypatch.setattr(adapter, "AUTHENTICATION_SECONDS", 0.5)
    with guest.create_server(PORT) as listener, ThreadPoolExecutor() as pool:
        for said in (b"", b"\0\0\0\x05hello"):
            connecting = pool.submit(Client, f"alpha:{PORT}", authkey=KEY)
            connection, _ = listener.accept()
            with connection:
                connection.sendall(said)
                with pytest.raises(AuthenticationError, match=f"3:{PORT} is not authenticated"):
                    connecting.result()


def test_key_that_is_no_bytes_is_an_error_at_once(switch):
    """As in the standard library."""
    with pytest.raises(TypeError):
        Listener(PORT, authkey="text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Client(f"alpha:{PORT}", authkey="text")  # type: ignore[arg-type]


def test_refusal_is_that_of_every_connection(guest):
    """Nobody listens."""
    with pytest.raises(vsock.ConnectRefused):
        Client("alpha:9", authkey=KEY)

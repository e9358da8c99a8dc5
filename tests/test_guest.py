"""`vsock.Guest`: joining, leaving, and the private directory."""

import asyncio
import select
import stat
import threading
from pathlib import Path

import pytest

import vsock
from vsock import UsageError

PORT = 5000


def test_guest_joined_has_the_cid_of_the_device(guest):
    """The guest's CID comes from the device."""
    assert guest.cid == 3


def test_guest_connects_to_the_host_and_is_seen_by_its_cid(guest):
    """The host sees the guest's address."""
    with vsock.create_server(PORT) as listener:
        with guest.create_connection("host:5000") as ours:
            theirs, peer = listener.accept()
            with theirs:
                assert peer == (3, ours.getsockname().port)
                ours.sendall(b"hello")
                assert theirs.recv(10) == b"hello"


def test_ports_of_guest_and_host_do_not_meet(guest):
    """Guest and host have separate ports."""
    with vsock.create_server(PORT) as ours, guest.create_server(PORT) as theirs:
        assert ours.getsockname() == theirs.getsockname()


def test_guests_directory_is_private_and_goes_when_it_leaves(switch):
    """Only this user can use the guest's sockets, and the directory is removed at the end."""
    with vsock.Guest(switch.socket_path("alpha")) as guest:
        directory = Path(guest.transport.directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()


def test_guest_that_left_can_come_again(switch):
    """The device accepts one front end after the other."""
    for _ in range(3):
        with vsock.Guest(switch.socket_path("alpha")) as guest:
            with guest.create_server(PORT) as listener, vsock.create_connection((3, PORT)):
                listener.accept()[0].close()


def test_guest_that_left_ends_its_connections(switch):
    """What is connected when a guest leaves reads the end of file: it closes its sockets, as a process does."""
    with vsock.Guest(switch.socket_path("alpha")) as guest:
        listener = guest.create_server(PORT)
        ours = vsock.create_connection((3, PORT))
    with ours, listener:
        assert ours.recv(1) == b""


async def test_guest_in_async_with_joins_and_leaves(switch):
    """The same, without blocking the loop."""
    async with vsock.Guest(switch.socket_path("alpha")) as guest:
        assert guest.cid == 3
    with pytest.raises(UsageError, match="not joined"):
        _ = guest.cid


@pytest.mark.parametrize(
    "use",
    [
        lambda guest: guest.cid,
        lambda guest: guest.transport,
        lambda guest: guest.socket(),
        lambda guest: guest.fileno(),
        lambda guest: guest.rejoin(),
        lambda guest: guest.create_server(PORT),
    ],
)
def test_guest_used_before_it_joined_raises(use):
    """A guest that is not attached has no sockets."""
    with pytest.raises(UsageError, match="not joined"):
        use(vsock.Guest("/nowhere"))


def test_guest_joining_nothing_raises_and_leaves_nothing(tmp_path, monkeypatch):
    """Without a device the error says so, and the private directory is gone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(OSError, match="nowhere"):
        vsock.Guest("/nowhere.sock", timeout=0.1).start()
    assert list(tmp_path.iterdir()) == []


def test_two_guests_of_one_group_talk(switch, guest):
    """Guests reach each other through the switch, by CID."""
    with vsock.Guest(switch.socket_path("beta")) as beta, beta.create_server(PORT) as listener:
        with guest.create_connection((4, PORT)) as ours:
            theirs, peer = listener.accept()
            with theirs:
                assert peer.cid == 3
                theirs.sendall(b"hello")
                assert ours.recv(10) == b"hello"


@pytest.mark.parametrize("size", [1, 1000, 100_000, 400_000])
def test_what_was_sent_before_the_guest_left_arrives(switch, size):
    """F2: a program sends, closes, and its guest ends, as with `vsock guest run`."""
    with vsock.create_server(5000, transport=switch.transport) as listener:
        for _ in range(20):
            with vsock.Guest(switch.socket_path("alpha")) as guest:
                connection = guest.create_connection((vsock.CID_HOST, 5000))
                connection.sendall(bytes(size))
                connection.close()
            accepted, _ = listener.accept()
            with accepted, accepted.makefile("rb") as stream:
                assert len(stream.read()) == size


def test_guest_whose_switch_ended_knows_and_joins_the_next_one(runtime_dir):
    """N5: its listener goes on there, with the CID that the guest has by then."""
    guest = vsock.Guest(runtime_dir / "guests/alpha.sock")
    with vsock.Switch({"alpha": 3}, runtime_dir=runtime_dir):
        guest.start()
        assert guest.wait(0) is None
        listener = guest.create_server(PORT)
    assert select.select([guest], [], [], 30)[0]
    assert guest.wait(0) == "the device hung up"
    with pytest.raises(OSError, match="alpha.sock"):
        guest.rejoin(0.1)
    with vsock.Switch({"alpha": 33}, runtime_dir=runtime_dir):
        guest.rejoin()
        assert guest.wait(0) is None
        with listener, vsock.create_connection("alpha:5000") as ours:
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockname() == ours.getpeername() == (33, PORT)
        guest.stop()


def test_guest_is_told_that_its_switch_has_ended(runtime_dir):
    """`wait` returns the reason at every call, and the guest can join the next switch."""
    with vsock.Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch:
        guest = vsock.Guest(switch.socket_path("alpha"))
        guest.start()
        assert guest.wait(0) is None
        switch.set_guest_cid("alpha", 33)
        assert guest.wait(0.01) is None
    assert guest.wait(30) == "the device hung up"
    assert guest.wait() == "the device hung up"
    guest.stop()
    with vsock.Switch({"alpha": 3}, runtime_dir=runtime_dir), guest:
        assert guest.wait(0) is None


def test_guest_is_told_that_it_was_removed(switch):
    """Several threads and tasks can wait."""
    with vsock.Guest(switch.socket_path("alpha")) as guest:
        said: list[str | None] = []
        threads = [threading.Thread(target=lambda: said.append(guest.wait(30))) for _ in range(3)]
        for thread in threads:
            thread.start()

        async def main() -> None:
            waiting = asyncio.ensure_future(guest.wait_async())
            done, _ = await asyncio.wait([waiting], timeout=0.01)
            assert not done
            switch.remove_guest("alpha")
            said.append(await waiting)

        asyncio.run(main())
        for thread in threads:
            thread.join()
        assert said == ["the device hung up"] * 4


def test_guest_stopped_by_another_thread_ends_the_wait(switch):
    """A wait ends when the guest is stopped."""
    guest = vsock.Guest(switch.socket_path("alpha"))
    guest.start()
    threading.Timer(0.05, guest.stop).start()
    assert guest.wait(30) == "this guest was stopped"
    with pytest.raises(UsageError):
        guest.wait(0)

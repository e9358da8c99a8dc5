"""A guest's CID changes while it runs: the effects for programs on both sides.

crates/node/tests/node_renumber.rs tests the switch with misbehaving guests,
tests/guests/test_migration.py real guests.
"""

import asyncio
import contextlib
import errno
import threading

import pytest

import vsock
from vsock import CID_ANY, CID_HOST

PORT = 5000


def test_connections_end_and_listeners_on_any_go_on(switch, guest):
    """vsock(7): connected sockets are disconnected, listeners are not."""
    with guest.create_server(PORT) as in_guest, vsock.create_server(PORT) as on_host:
        to_guest = vsock.create_connection((3, PORT))
        to_host = guest.create_connection((CID_HOST, PORT))
        ends = [to_guest, to_host, in_guest.accept()[0], on_host.accept()[0]]
        switch.set_guest_cid("alpha", 33)
        for end in ends:
            with pytest.raises(ConnectionResetError):
                end.recv(1)
            assert end.recv(1) == b"", "an error is told once"
            with pytest.raises(BrokenPipeError):
                end.send(b"x")
            end.close()
        assert guest.cid == 33
        assert vsock.get_local_cid(transport=guest.transport) == 33
        with vsock.create_connection((33, PORT)):
            accepted, _ = in_guest.accept()
            assert accepted.getsockname() == (33, PORT)
            accepted.close()
        with guest.create_connection((CID_HOST, PORT)):
            accepted, peer = on_host.accept()
            assert peer[0] == 33
            accepted.close()
        with pytest.raises(vsock.NoSuchGuest):
            vsock.create_connection((3, PORT))


def test_listener_bound_to_the_old_number_is_lost(switch, guest):
    """As in the kernel: a listener must be bound to the wildcard to be reachable after a migration."""
    with guest.create_server((3, PORT)):
        switch.set_guest_cid(3, 33)
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((33, PORT))
        with guest.socket() as sock:
            sock.bind((33, PORT))
            assert sock.getsockname() == (33, PORT)
        with guest.socket() as sock, pytest.raises(OSError, match="assign") as caught:
            sock.bind((3, PORT + 1))
        assert caught.value.errno == errno.EADDRNOTAVAIL


def test_loopback_of_the_guest_is_not_touched(switch, guest):
    """Only connections over the link end."""
    with (
        guest.create_server(PORT) as listener,
        guest.create_connection((vsock.CID_LOCAL, PORT)) as ours,
    ):
        theirs, _ = listener.accept()
        switch.set_guest_cid(3, 33)
        # Answered only after the guest has read the event.
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((33, PORT + 1))
        assert guest.cid == 33
        with theirs:
            ours.sendall(b"still here")
            assert theirs.recv(100) == b"still here"


def test_blocked_calls_return_and_nothing_hangs(switch, guest):
    """A receive, a blocked send, an accept and asyncio all notice it."""
    with guest.create_server(PORT) as listener:
        reader = vsock.create_connection((3, PORT))
        writer = vsock.create_connection((3, PORT))
        ends = [listener.accept()[0] for _ in range(2)]
        seen: dict[str, int | None] = {}

        def read() -> None:
            try:
                reader.recv(1)
            except OSError as error:
                seen["read"] = error.errno

        def write() -> None:
            try:
                writer.sendall(bytes(1 << 24))
            except OSError as error:
                seen["write"] = error.errno

        threads = [threading.Thread(target=call) for call in (read, write)]
        for thread in threads:
            thread.start()
        while ends[1].recv(1 << 16, 2) == b"":  # MSG_PEEK: the writer has begun to send
            pass
        switch.set_guest_cid(3, 33)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert seen == {"read": errno.ECONNRESET, "write": errno.EPIPE}
        for sock in (reader, writer, *ends):
            sock.close()


async def test_asyncio_server_goes_on(switch, guest):
    """A server in the guest loses its clients, and accepts the next ones."""
    gone: asyncio.Queue[None] = asyncio.Queue()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        with pytest.raises(ConnectionResetError):
            await reader.read(100)
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
        gone.put_nowait(None)

    server = await guest.start_server(echo, (CID_ANY, PORT))
    for before, after in ((3, 33), (33, 34)):
        reader, writer = await vsock.open_connection((before, PORT))
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await asyncio.to_thread(switch.set_guest_cid, "alpha", after)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await asyncio.wait_for(gone.get(), 30)
    server.close()

"""S16: a connection whose other side went away does not read like one that ended well, whatever receives.

All data that arrived comes first, then ECONNRESET once, then the end. tests/guests/test_orderly_end.py has it with
Linux guests, docs/reference/differences.md (D10) says what a bare descriptor cannot tell.
"""

import asyncio
import select
from collections.abc import Callable

import pytest

import vsock
from vsock.guest import Guest
from vsock.switch import Switch

PORT = 5000
SECONDS = 30
DATA = b"12345678"


def _recv_into(sock: vsock.socket) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: sock.recv_into(buffer)])


def _recvfrom_into(sock: vsock.socket) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: sock.recvfrom_into(buffer)[0]])


def _recvmsg_into(sock: vsock.socket) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: sock.recvmsg_into([buffer])[0]])


def _in_loop(sock: vsock.socket) -> bytes:
    async def receive() -> bytes:
        return await asyncio.get_running_loop().sock_recv(sock, 100)

    sock.setblocking(False)
    return asyncio.run(receive())


WAYS: dict[str, Callable[[vsock.socket], bytes]] = {
    "recv": lambda sock: sock.recv(100),
    "recv_into": _recv_into,
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recvfrom_into": _recvfrom_into,
    "recvmsg": lambda sock: sock.recvmsg(100)[0],
    "recvmsg_into": _recvmsg_into,
    "makefile": lambda sock: sock.makefile("rb", buffering=0).read(100) or b"",
    "sock_recv": _in_loop,
}


@pytest.fixture(params=[vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
def kind(request: pytest.FixtureRequest) -> int:
    """The type of a connection."""
    number: int = request.param
    return number


def ended(switch: Switch, guest: Guest, kind: int, *, is_lost: bool) -> vsock.socket:
    """A connection of the host that holds data which a guest sent before it ended."""
    with guest.create_server(PORT, type=kind) as listener:
        sock = vsock.create_connection((guest.cid, PORT), type=kind)
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(DATA)
            arrival = select.poll()
            arrival.register(sock, select.POLLIN)
            assert arrival.poll(SECONDS * 1000)
            if is_lost:
                switch.remove_guest("alpha")
    hangup = select.poll()
    hangup.register(sock, select.POLLRDHUP)
    assert hangup.poll(SECONDS * 1000)
    return sock


@pytest.mark.parametrize("way", WAYS)
def test_lost_connection_is_told_once_behind_its_data(
    switch: Switch, guest: Guest, kind: int, way: str
) -> None:
    """By every way to receive."""
    receive = WAYS[way]
    with ended(switch, guest, kind, is_lost=True) as sock:
        assert receive(sock) == DATA
        with pytest.raises(ConnectionResetError):
            receive(sock)
        assert receive(sock) == b""


@pytest.mark.parametrize("way", WAYS)
def test_good_end_is_an_end(switch: Switch, guest: Guest, kind: int, way: str) -> None:
    """By every way to receive."""
    receive = WAYS[way]
    with ended(switch, guest, kind, is_lost=False) as sock:
        assert receive(sock) == DATA
        assert receive(sock) == b""


@pytest.mark.parametrize("is_lost", [True, False])
async def test_streams_of_asyncio_tell_it(switch: Switch, guest: Guest, is_lost: bool) -> None:
    """`vsock.aio`'s reader gives the data, and then the error."""
    with guest.create_server(PORT) as listener:
        listener.settimeout(SECONDS)
        reader, writer = await vsock.open_connection((guest.cid, PORT))
        accepted, _ = await asyncio.to_thread(listener.accept)
        with accepted:
            accepted.sendall(DATA)
            assert await reader.readexactly(len(DATA)) == DATA
            if is_lost:
                switch.remove_guest("alpha")
    if is_lost:
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    else:
        assert await reader.read(1) == b""
    writer.close()
    if not is_lost:
        await writer.wait_closed()

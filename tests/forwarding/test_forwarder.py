"""`vsock.forwarding`: connections from one end to another; bytes, ends and losses are passed on as they are."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import resource
import select
import socket
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.waiting import until

import vsock
from vsock.errors import AddressError, SwitchGone
from vsock.forwarding import Forwarder, Refused, TcpEnd, parse_end, splicing
from vsock.forwarding.ends import connect_first
from vsock.forwarding.splicing import Carried, join, reset
from vsock.guest import Guest
from vsock.switch import Switch

SIZE = 8 << 20
FILLING = 128 << 10
"""More than a pipe and the smallest socket buffer hold, and less than those and the smallest window of TCP."""
DEADLINE = 20
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and then the end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer when the other side has ended its data: a reply that a proxy without half-close loses."""
    seen = hashlib.sha256()
    while data := await reader.read(65536):
        seen.update(data)
    writer.write(seen.hexdigest().encode())
    writer.close()
    await writer.wait_closed()


async def tcp_client(forwarder: Forwarder) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a forwarder that listens on TCP."""
    end = parse_end(forwarder.address)
    assert isinstance(end, TcpEnd)
    return await asyncio.open_connection(end.host, end.port)


@pytest.fixture
async def serve(guest: Guest) -> AsyncIterator[Callable[[Handler, int], Awaitable[None]]]:
    """Starts servers in the guest `alpha`; they end, and all their connections, with the test."""
    servers: list[asyncio.AbstractServer] = []
    writers: list[asyncio.StreamWriter] = []

    async def start(handler: Handler, port: int) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            with contextlib.suppress(ConnectionError):  # the test has reset it
                await handler(reader, writer)

        servers.append(await vsock.start_server(handle, port, transport=guest.transport))

    yield start
    for server in servers:
        server.close()
        await server.wait_closed()
    for writer in writers:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("8080", "tcp:127.0.0.1:8080"),
        ("tcp:0.0.0.0:80", "tcp:0.0.0.0:80"),
        ("tcp:[::1]:80", "tcp:[::1]:80"),
        ("tcp:db.example:5432", "tcp:db.example:5432"),
        ("tcp::80", "tcp:127.0.0.1:80"),
        ("alpha:80", "alpha:80"),
        ("unix:/run/docker.sock", "unix:/run/docker.sock"),
    ],
)
def test_ends_are_read_and_printed(text: str, shown: str) -> None:
    """What is printed reads back as the same."""
    assert str(parse_end(text)) == shown
    assert str(parse_end(shown)) == shown


@pytest.mark.parametrize("text", ["", "65536", "tcp:", "tcp:a:b", "tcp:::1:80", "tcp:a:99999", "²"])
def test_what_is_no_end_is_refused(text: str) -> None:
    """With what is wrong."""
    with pytest.raises(AddressError):
        parse_end(text)


async def test_tcp_port_leads_to_a_guest_and_each_end_is_passed_on_alone(
    serve: Callable[[Handler, int], Awaitable[None]],
) -> None:
    """The answer comes after the end of the question."""
    await serve(digest, 80)
    data = os.urandom(SIZE)
    async with Forwarder(parse_end("tcp:127.0.0.1:0"), parse_end("alpha:80")) as forwarder:
        reader, writer = await tcp_client(forwarder)
        writer.write(data)
        writer.write_eof()
        assert (await reader.read()).decode() == hashlib.sha256(data).hexdigest()
        writer.close()
        await writer.wait_closed()
        assert forwarder.total == 1


async def test_guest_reaches_a_unix_socket_of_the_host(guest: Guest, tmp_path: Path) -> None:
    """The other way round: a program in the guest connects to a port of the host."""
    path = str(tmp_path / "s")
    server = await asyncio.start_unix_server(echo, path)
    async with server, Forwarder(parse_end("host:7000"), parse_end(f"unix:{path}")):
        reader, writer = await vsock.open_connection((2, 7000), transport=guest.transport)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


async def test_thousand_connections_at_once(
    serve: Callable[[Handler, int], Awaitable[None]],
) -> None:
    """Each has its own bytes, and all are open together; as many as there are descriptors for."""
    await serve(echo, 80)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(1000, hard // 12)
    async with Forwarder(parse_end("tcp:127.0.0.1:0"), parse_end("alpha:80")) as forwarder:
        clients = [await tcp_client(forwarder) for _ in range(many)]
        for number, (_, writer) in enumerate(clients):
            writer.write(b"%d\n" % number)
        lines = [await reader.readline() for reader, _ in clients]
        assert lines == [b"%d\n" % number for number in range(many)]
        assert forwarder.open == many
        for _, writer in clients:
            writer.close()
            await writer.wait_closed()


async def test_reader_that_is_slow_stops_its_writer_and_nobody_else(
    serve: Callable[[Handler, int], Awaitable[None]],
) -> None:
    """What is under way is what sockets and pipes hold."""
    stop = asyncio.Event()

    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()
        writer.close()

    await serve(slow, 80)
    await serve(echo, 81)
    async with (
        Forwarder(parse_end("tcp:127.0.0.1:0"), parse_end("alpha:80")) as blocked,
        Forwarder(parse_end("tcp:127.0.0.1:0"), parse_end("alpha:81")) as free,
    ):
        _, writer = await tcp_client(blocked)
        writer.write(bytes(64 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await writer.drain()
        reader, other = await tcp_client(free)
        other.write(b"quick\n")
        assert await reader.readline() == b"quick\n"
        other.close()
        writer.transport.abort()
        stop.set()


async def test_refusals_are_told_and_the_caller_is_closed(guest: Guest) -> None:
    """Nobody listens at the target; the forwarder goes on."""
    told: list[Refused] = []
    async with Forwarder(
        parse_end("tcp:127.0.0.1:0"), parse_end("alpha:9"), tell=told.append
    ) as forwarder:
        for _ in range(2):
            reader, writer = await tcp_client(forwarder)
            assert await reader.read() == b""
            writer.close()
    assert [one.reason.startswith("alpha:9: ") for one in told] == [True, True]
    assert "nobody accepts" in told[0].reason


async def test_loss_of_the_guest_is_a_reset_and_not_an_end(
    serve: Callable[[Handler, int], Awaitable[None]], switch: Switch
) -> None:
    """A client could take an end for the whole answer."""
    told: list[Refused] = []
    await serve(echo, 80)
    async with Forwarder(
        parse_end("tcp:127.0.0.1:0"), parse_end("alpha:80"), tell=told.append
    ) as forwarder:
        reader, writer = await tcp_client(forwarder)
        writer.write(b"begun\n")
        assert await reader.readline() == b"begun\n"
        await asyncio.to_thread(switch.remove_guest, "alpha")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    assert len(told) == 1


async def test_forwarder_ends_with_its_switch(runtime_dir: Path) -> None:
    """Its listener is the switch's; the error says so."""
    with Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch:
        async with Forwarder(parse_end("host:7000"), parse_end("tcp:1")) as forwarder:
            thread = threading.Thread(target=switch.stop)
            thread.start()
            with pytest.raises(SwitchGone):
                async with asyncio.timeout(20):
                    await forwarder.wait()
            thread.join()


async def test_end_of_the_block_closes_everything(
    serve: Callable[[Handler, int], Awaitable[None]],
) -> None:
    """Also what is open, and the listener's port is free again."""
    await serve(echo, 80)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count
    async with Forwarder(parse_end("tcp:127.0.0.1:0"), parse_end("alpha:80")) as forwarder:
        reader, writer = await tcp_client(forwarder)
        writer.write(b"x\n")
        assert await reader.readline() == b"x\n"
        end = parse_end(forwarder.address)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert isinstance(end, TcpEnd)
    with socket.create_server((end.host, end.port)):
        pass
    deadline = asyncio.get_running_loop().time() + 20
    while len(os.listdir("/proc/self/fd")) > before:  # noqa: PTH208 - the server's end closes a moment later
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


async def test_silent_address_does_not_take_the_time_of_the_next() -> None:
    """Nor does one that refuses; the kernel would wait for minutes."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as silent,
        socket.create_server(("127.0.0.1", 0)) as live,
        contextlib.ExitStack() as stack,
    ):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            refusing = closed.getsockname()
        for _ in range(8):  # its queue is full, and the kernel drops what more comes
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
            for address in (refusing, silent.getsockname(), live.getsockname())
        ]
        async with asyncio.timeout(30):
            with await connect_first(found) as sock:
                assert sock.getpeername() == live.getsockname()
            with pytest.raises(ConnectionRefusedError):
                await connect_first(found[:1])
        assert len(asyncio.all_tasks()) == 1


async def test_urgent_byte_of_tcp_is_left_out_and_the_data_goes_on() -> None:
    """splice(2) stops before it, and the loop would be told for ever that there is more."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    caller, _ = listener.accept()
    listener.close()
    callee, server = socket.socketpair()
    for sock in (caller, callee, server):
        sock.setblocking(False)
    joined = asyncio.ensure_future(join(caller, callee, Carried()))
    loop = asyncio.get_running_loop()
    with client, server:
        client.sendall(b"before")
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"behind")
        client.shutdown(socket.SHUT_WR)
        came = b""
        async with asyncio.timeout(20):
            while piece := await loop.sock_recv(server, 100):
                came += piece
            server.close()
            await joined
    assert came == b"beforebehind"


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def narrow_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The same; the second one has hardly room for what it receives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def read_to_end(sock: socket.socket) -> int:
    """How many bytes come until the end, or until there is an error behind them."""
    count = 0
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            count += len(piece)
    return count


class Joined:
    """A TCP client joined with a server: `client` and `server` are the outer ends; `server` is non-blocking."""

    def __init__(
        self, pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
    ) -> None:
        self.carried = Carried()
        self.client, self.caller = tcp_pair()
        self.callee, self.server = pair()
        for sock in (self.caller, self.callee, self.server):
            sock.setblocking(False)

    async def __aenter__(self) -> "Joined":
        self.ended = asyncio.ensure_future(join(self.caller, self.callee, self.carried))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()
        await asyncio.wait([self.ended], timeout=DEADLINE)

    async def send(self, size: int) -> None:
        """Send so much, and wait until the forwarder's kernel has it."""
        await asyncio.to_thread(self.client.sendall, bytes(size))
        await asyncio.to_thread(until, lambda: not unsent(self.client))

    async def fill(self) -> None:
        """Send until nothing moves any more."""
        self.client.setblocking(False)
        seen: list[int] = []

        def is_full() -> bool:
            with contextlib.suppress(BlockingIOError):
                self.client.send(bytes(FILLING))
            seen.append(unsent(self.client))
            return len(seen) > 20 and len(set(seen[-20:])) == 1

        await asyncio.to_thread(until, is_full)

    def lose(self) -> None:
        """Reset the client's connection."""
        reset(self.client)
        self.client.close()

    async def received(self) -> bytes:
        """What the server receives until the end."""
        came = b""
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionError):
                while piece := await asyncio.get_running_loop().sock_recv(self.server, 65536):
                    came += piece
        return came


def unsent(sock: socket.socket) -> int:
    """Bytes that the other side's kernel has not acknowledged."""
    size = bytearray(4)
    fcntl.ioctl(sock, termios.TIOCOUTQ, size)
    return int.from_bytes(size, sys.byteorder)


async def test_lost_caller_is_noticed_while_the_other_side_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it has sent fills all on the way; both ends are released."""
    monkeypatch.setattr(splicing, "_STALLED_SECONDS", 0.1)
    async with Joined() as joined:
        joined.callee.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        await joined.send(FILLING)
        joined.lose()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(ConnectionResetError):
                await joined.ended
        assert joined.callee.fileno() == -1
        assert len(await joined.received()) < FILLING


async def test_all_that_a_lost_caller_has_sent_is_passed_on_to_who_takes_it() -> None:
    """However full the way was when it was lost."""
    async with Joined() as joined:
        joined.callee.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        await joined.send(FILLING)
        joined.lose()
        assert len(await joined.received()) == FILLING
        with pytest.raises(ConnectionResetError):
            await joined.ended


async def test_caller_that_is_lost_behind_its_end_is_noticed() -> None:
    """The other side sends nothing, so that nothing fails to reach it."""
    async with Joined() as joined:
        await joined.send(1)
        joined.client.shutdown(socket.SHUT_WR)
        assert await joined.received() == b"\0"
        joined.lose()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(BrokenPipeError):  # as the kernel has it behind an end
                await joined.ended


async def test_caller_that_is_lost_as_soon_as_it_has_ended_is_noticed() -> None:
    """The loop hears of the loss before it has read the data, and then the data has a good end."""
    async with Joined() as joined:
        await asyncio.sleep(0)  # it has begun
        joined.client.sendall(b"last")
        joined.client.shutdown(socket.SHUT_WR)
        joined.lose()
        assert await joined.received() == b"last"
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(BrokenPipeError):
                await joined.ended


async def test_answer_of_a_side_that_is_lost_behind_its_end_is_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client takes it late. A server closes behind its answer, and what the client still sends makes it a loss."""
    monkeypatch.setattr(splicing, "_STALLED_SECONDS", 1.0)
    async with Joined() as joined:
        joined.caller.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FILLING)
        await asyncio.get_running_loop().sock_sendall(joined.server, bytes(FILLING))
        joined.server.shutdown(socket.SHUT_WR)
        await asyncio.to_thread(until, lambda: joined.carried.back == FILLING)
        await joined.send(1)
        await asyncio.to_thread(select.select, [joined.server], [], [], DEADLINE)
        joined.server.close()
        assert not (await asyncio.wait([joined.ended], timeout=0.5))[0]
        assert await asyncio.to_thread(read_to_end, joined.client) == FILLING
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(ConnectionResetError):
                await joined.ended


async def test_side_that_takes_slowly_what_a_lost_one_has_sent_has_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loop tells of room only when a third of the buffer is free, which here takes longer than a stall."""
    stall = 3.0
    monkeypatch.setattr(splicing, "_STALLED_SECONDS", stall)
    async with Joined(narrow_tcp_pair) as joined:
        joined.callee.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FILLING // 2)
        await joined.fill()
        joined.lose()
        end = time.monotonic() + 1.5 * stall
        while time.monotonic() < end:
            assert await asyncio.get_running_loop().sock_recv(joined.server, 1024)
            assert not (await asyncio.wait([joined.ended], timeout=0.15))[0]


async def test_callee_that_is_lost_behind_its_end_is_noticed() -> None:
    """The same the other way round; it has left unread what was sent to it."""
    async with Joined() as joined:
        joined.server.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(joined.client.recv, 1) == b""
        await joined.send(1)
        await asyncio.to_thread(select.select, [joined.server], [], [], DEADLINE)
        joined.server.close()
        async with asyncio.timeout(DEADLINE):
            with pytest.raises(ConnectionResetError):
                await joined.ended


async def test_caller_that_ends_well_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has closed, and the other side reads nothing for longer than that of a lost one may."""
    monkeypatch.setattr(splicing, "_STALLED_SECONDS", 0.01)
    async with Joined() as joined:
        joined.callee.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        await joined.send(FILLING)
        joined.client.close()
        assert not (await asyncio.wait([joined.ended], timeout=0.5))[0]
        assert len(await joined.received()) == FILLING
        joined.server.close()
        await asyncio.wait([joined.ended], timeout=DEADLINE)
        assert joined.ended.exception() is None

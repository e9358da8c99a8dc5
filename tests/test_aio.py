"""The asyncio verbs, and `vsock.socket` under asyncio's own functions."""

import asyncio
import errno
import os
import resource
import socket

import pytest

import vsock
from vsock.aio.server import Server
from vsock.testing import MemoryTransport

PORT = 5000


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service that answers with the received text in upper case."""
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    """Send `text`, shut down the sending direction, and return the whole answer."""
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_streams_opened_to_a_guest_carry_data_and_addresses(guest):
    """open_connection and start_server are asyncio's, with VSOCK addresses."""
    async with await guest.start_server(shout, PORT) as server:
        assert server.sockets[0].getsockname() == (vsock.CID_ANY, PORT)
        reader, writer = await vsock.open_connection("alpha:5000")
        assert writer.get_extra_info("peername") == (3, PORT)
        assert await ask(reader, writer, b"hello") == b"HELLO"


async def test_streams_opened_from_a_guest_to_the_host_carry_data(guest):
    """The same verbs work the other way round."""
    async with await vsock.start_server(shout, PORT):
        reader, writer = await guest.open_connection("host:5000")
        assert writer.get_extra_info("peername") == (vsock.CID_HOST, PORT)
        assert await ask(reader, writer, b"hello") == b"HELLO"


async def test_fifty_connections_at_once_all_carry_data(guest):
    """Connections that begin at the same time do not disturb each other."""

    async def one(number):
        reader, writer = await vsock.open_connection((3, PORT))
        return await ask(reader, writer, b"number %d" % number)

    async with await guest.start_server(shout, PORT):
        answers = await asyncio.gather(*map(one, range(50)))
    assert answers == [b"NUMBER %d" % number for number in range(50)]


async def test_refused_connection_raises_the_same_error_as_the_blocking_verb(guest):
    """Without a listener: ConnectRefused, with AF_VSOCK's errno."""
    with pytest.raises(vsock.ConnectRefused) as caught:
        await vsock.open_connection((3, PORT))
    assert caught.value.errno == errno.ECONNRESET


async def test_connection_without_an_answer_times_out_while_the_loop_runs(switch):
    """Waiting for a guest does not block the loop, and ends as ConnectTimeout."""
    waiting = asyncio.create_task(vsock.open_connection((4, PORT), timeout=0.1))
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 1
    assert isinstance(waiting.exception(), vsock.ConnectTimeout)


async def test_connection_cancelled_while_under_way_is_closed(switch):
    """Cancelling leaves no socket behind."""
    waiting = asyncio.create_task(vsock.open_connection((4, PORT)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_no_switch_raises_at_once(runtime_dir):
    """Without a switch both functions raise NoSwitch."""
    with pytest.raises(vsock.NoSwitch):
        await vsock.open_connection((3, PORT))
    with pytest.raises(vsock.NoSwitch):
        await vsock.start_server(shout, PORT)


async def test_loop_sock_connect_and_sock_accept_work(guest):
    """The socket is usable with asyncio's functions for bare sockets."""
    loop = asyncio.get_running_loop()
    with guest.create_server(PORT) as listener, vsock.socket() as ours:
        listener.setblocking(False)
        ours.setblocking(False)
        accepting = asyncio.create_task(loop.sock_accept(listener))
        await loop.sock_connect(ours, (3, PORT))
        theirs, _ = await accepting
        with theirs:
            await loop.sock_sendall(ours, b"hello")
            assert await loop.sock_recv(theirs, 100) == b"hello"


async def test_loop_sock_connect_refused_raises_connection_reset(guest):
    """asyncio reads the refusal from SO_ERROR."""
    with vsock.socket() as ours:
        ours.setblocking(False)
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_connect(ours, (3, PORT))


async def test_connection_given_to_asyncio_becomes_streams(guest):
    """A connected socket can be handed to asyncio.open_connection."""
    async with await guest.start_server(shout, PORT):
        sock = vsock.create_connection((3, PORT))
        reader, writer = await asyncio.open_connection(sock=sock)
        assert await ask(reader, writer, b"hello") == b"HELLO"


async def test_server_whose_switch_stops_closes_and_says_why(runtime_dir):
    """A server does not spin on a dead listener: it closes, and the loop's exception handler gets the reason."""
    told = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.set_result(context))
    async with vsock.Switch(runtime_dir=runtime_dir):
        server = await vsock.start_server(shout, PORT)
    context = await asyncio.wait_for(told, 10)
    assert isinstance(context["exception"], vsock.SwitchGone)
    await asyncio.sleep(0)
    assert not server.is_serving()


async def test_hybrid_connection_opened_carries_data_from_the_first_byte(tmp_path, monkeypatch):
    """The handshake is awaited, and takes no byte of the stream."""
    monkeypatch.chdir(tmp_path)
    lines = []

    async def hypervisor(reader, writer):
        lines.append(await reader.readline())
        writer.write(b"OK 1073\nwelcome ")
        await shout(reader, writer)

    async with await asyncio.start_unix_server(hypervisor, "fc.sock"):
        reader, writer = await vsock.open_connection(vsock.HybridAddress("fc.sock", 52))
        assert lines == [b"CONNECT 52\n"]
        assert writer.get_extra_info("sockname") == (vsock.CID_HOST, 1073)
        assert await ask(reader, writer, b"hello") == b"welcome HELLO"


async def test_hybrid_connection_refused_or_unanswered_raises(tmp_path, monkeypatch):
    """A closed handshake is a refusal, silence a timeout."""
    monkeypatch.chdir(tmp_path)
    address = vsock.HybridAddress("fc.sock", 52)
    over = asyncio.Event()

    async def closes(reader, writer):
        await reader.readline()
        writer.close()

    async def says_nothing(_, writer):
        await over.wait()
        writer.close()

    async with await asyncio.start_unix_server(closes, "fc.sock"):
        with pytest.raises(vsock.ConnectRefused):
            await vsock.open_connection(address)
    async with await asyncio.start_unix_server(says_nothing, "fc.sock"):
        with pytest.raises(vsock.ConnectTimeout):
            await vsock.open_connection(address, timeout=0.05)
        over.set()


async def test_unix_address_opened_is_the_plain_socket(tmp_path, monkeypatch):
    """``unix:`` has no handshake, for clients and servers."""
    monkeypatch.chdir(tmp_path)
    async with await vsock.start_server(shout, "unix:plain.sock"):
        reader, writer = await vsock.open_connection("unix:plain.sock")
        assert writer.get_extra_info("socket").type == socket.SOCK_STREAM
        assert await ask(reader, writer, b"hello") == b"HELLO"


async def begin_server(transport: MemoryTransport) -> tuple[Server, asyncio.Queue[None]]:
    """A server that reads until its clients end, and a queue with an entry for each connection."""
    begun: asyncio.Queue[None] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.put_nowait(None)
        await reader.read()
        writer.close()

    server = await vsock.start_server(serve, PORT, transport=transport)
    assert isinstance(server, Server)
    return server, begun


@pytest.mark.parametrize("waits", [False, True])
async def test_closed_server_waits_for_its_connections_as_asyncio_does(monkeypatch, waits):
    """Or not, with an older Python."""
    monkeypatch.setattr(Server, "WAITS_FOR_CONNECTIONS", waits)
    host = MemoryTransport()
    server, begun = await begin_server(host)
    _, writer = await vsock.open_connection((1, PORT), transport=host)
    await begun.get()
    server.close()
    waiting = asyncio.create_task(server.wait_closed())
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert bool(done) is not waits
    writer.close()
    await asyncio.wait_for(waiting, 10)
    await writer.wait_closed()


@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_server_ends_its_connections(how):
    """All at once, and each side sees the end."""
    host = MemoryTransport()
    server, begun = await begin_server(host)
    async with server:
        clients = []
        for _ in range(3):
            clients.append(await vsock.open_connection((1, PORT), transport=host))
            await begun.get()
        getattr(server, how)()
        for reader, writer in clients:
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()


async def test_server_without_a_descriptor_pauses_and_goes_on(monkeypatch):
    """It logs once, does not spin, and accepts the connection when a descriptor is free."""
    monkeypatch.setattr("vsock.aio.server._SHORTAGE_PAUSE", 0.05)
    monkeypatch.setattr(Server, "WAITS_FOR_CONNECTIONS", True)
    told: asyncio.Queue[OSError] = asyncio.Queue()
    loop, host = asyncio.get_running_loop(), MemoryTransport()
    loop.set_exception_handler(lambda _, context: told.put_nowait(context["exception"]))
    server, begun = await begin_server(host)
    async with server:
        with vsock.create_connection((1, PORT), transport=host):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                error = await asyncio.wait_for(told.get(), 10)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert error.errno == errno.EMFILE
            await asyncio.wait_for(begun.get(), 10)
    assert told.empty()

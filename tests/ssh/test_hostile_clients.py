"""Clients that break the protocol or flood `vsock-sshd`: it goes on for others, in bounded memory."""

import asyncio
import contextlib
import random
import re
import resource
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
from tests.ssh.guest_server import SECONDS, GuestServer, until

import vsock
from vsock.errors import SessionError
from vsock.ssh.identity import Identity
from vsock.ssh.session import GuestSession

MIB = 1 << 20
MOST_MEMORY = 24 * MIB
"""Far below what the clients here send, and above what the limits allow one of them."""

CHANNELS = 64
LOGINS = 8

CHANNEL_OPEN, CHANNEL_DATA, CHANNEL_REQUEST, GLOBAL_REQUEST = 90, 94, 98, 80


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GuestServer]:
    """The server, which lets this test's user in; its memory stays small."""
    with GuestServer(tmp_path, Identity.of_user()) as running:
        yield running
        assert running.memory() < MOST_MEMORY


@contextlib.asynccontextmanager
async def opened(server: GuestServer) -> AsyncIterator[GuestSession]:
    """A session, in bounded time."""
    async with asyncio.timeout(SECONDS), vsock.guest_session(server.host) as session:
        yield session


async def serves(server: GuestServer) -> bool:
    """Whether somebody else is served."""
    async with opened(server) as session:
        return (await session.run("echo served")).stdout == "served\n"


def connected(server: GuestServer) -> socket.socket:
    """A client that has said nothing."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    client.connect(str(server.socket))
    return client


def ended(client: socket.socket) -> bool:
    """Whether the server ends the connection."""
    with contextlib.suppress(ConnectionError):
        while client.recv(65536):
            pass
    return True


async def test_garbage_before_the_key_exchange_ends_the_connection(server: GuestServer) -> None:
    """Random bytes, giant lines and giant packets, from a fixed seed."""
    chance = random.Random(22)
    openings = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 100_000,
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-x\r\n" + b"\xff" * 64,
        b"SSH-2.0-x\r\n" + struct.pack(">IB", 35_000, 4) + b"\0" * 35_000,
        b"SSH-2.0-x\r\n" + struct.pack(">IBB", 12, 4, 20) + b"\0" * 10,
    ]
    openings += [b"SSH-2.0-x\r\n" + chance.randbytes(chance.randrange(2000)) for _ in range(60)]
    for opening in openings:
        with connected(server) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(opening)
                client.shutdown(socket.SHUT_WR)
            assert await asyncio.to_thread(ended, client), opening[:40]
    assert await serves(server)


async def test_silent_clients_leave_room_for_others(server: GuestServer) -> None:
    """Those above the limit are closed at once; the rest is gone when it hangs up."""
    silent = [connected(server) for _ in range(LOGINS)]
    for client in silent:
        assert client.recv(4) == b"SSH-"
    with connected(server) as late:
        assert late.recv(100) == b""
    for client in silent:
        client.close()
    async with asyncio.timeout(SECONDS):  # until it has seen that they are gone
        while True:
            with contextlib.suppress(SessionError):
                assert await serves(server)
                return


@pytest.mark.parametrize(
    "packet",
    [
        (CHANNEL_DATA, struct.pack(">II", 0, 0xFFFFFFFF)),
        (CHANNEL_REQUEST, b"\0\0\0\1\0\0\0\xff"),
        (GLOBAL_REQUEST, b""),
        (CHANNEL_OPEN, b"\xff" * 40),
        (255, b"\0" * 1000),
        (20, b"\0" * 3),
    ],
)
async def test_malformed_packets_after_the_login_concern_one_connection(
    server: GuestServer, packet: tuple[int, bytes]
) -> None:
    """Others do not notice."""
    async with opened(server) as other:
        with contextlib.suppress(asyncssh.Error, OSError):
            async with opened(server) as session:
                session.connection.send_packet(packet[0], packet[1])
                session.connection.send_packet(packet[0], packet[1])
                # Nothing says whether the server ends it: the packet may be none that matters.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await session.connection.wait_closed()
        assert (await other.run("echo still here")).stdout == "still here\n"


async def test_channels_are_bounded_and_can_be_used_again(server: GuestServer) -> None:
    """The first one too many is refused, by name; the others work."""
    async with opened(server) as session:
        processes = [await session.open_process("cat") for _ in range(CHANNELS)]
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await session.connection.create_process("cat")
        assert refused.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE
        processes[-1].stdin.write_eof()
        await processes[-1].wait()
        assert (await session.run("echo again")).stdout == "again\n"
        assert len(server.children()) == CHANNELS - 1
        for _ in range(CHANNELS):
            assert (await session.run("true")).returncode == 0
    await server.until_childless()


async def test_flood_of_channels_is_answered_in_bounded_memory(server: GuestServer) -> None:
    """Ten thousand, whose answers asyncssh takes for errors: it ends the connection when it sees the first."""
    with contextlib.suppress(asyncssh.Error, OSError):
        async with opened(server) as session:
            for number in range(10_000):
                name = b"session" if number % 2 else b"direct-tcpip"
                head = struct.pack(">I", len(name)) + name
                session.connection.send_packet(
                    CHANNEL_OPEN, head, struct.pack(">III", number + 9000, MIB, 32768)
                )
            await session.connection.wait_closed()
    assert await serves(server)
    await server.until_childless()


async def test_flood_of_forwards_and_variables_is_refused(
    server: GuestServer, tmp_path: Path
) -> None:
    """Sixteen listeners, and the sockets are gone with the connection."""
    async with opened(server) as session:
        for number in range(16):
            await session.connection.forward_remote_path(str(tmp_path / f"l{number}"), "/nowhere")
        with pytest.raises(asyncssh.ChannelListenError):
            await session.connection.forward_remote_path(str(tmp_path / "l16"), "/nowhere")
        env = {f"V{number}": "x" * 2000 for number in range(100)}
        process = await session.connection.create_process("env", env=env)
        done = await process.wait()
        assert (
            len([line for line in str(done.stdout).splitlines() if re.match(r"V\d+=", line)]) == 32
        )
    await until(lambda: not list(tmp_path.glob("l*")))


@pytest.fixture
def agent_folders(server: GuestServer) -> Callable[[], list[Path]]:
    """The folders of the server's sockets for agents."""
    name = f"vsock-sshd-{server.pid}-*"
    return lambda: [
        path for parent in ("/run", "/tmp", "/dev/shm") for path in Path(parent).glob(name)
    ]


async def test_flood_of_requests_for_an_agent_makes_few_sockets(
    server: GuestServer,
    agent_folders: Callable[[], list[Path]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Sixteen with the other listeners, one of a channel, and none once its process has started."""
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    async with asyncio.timeout(SECONDS):
        async with vsock.guest_session(server.host, forward_agent=True) as session:
            await session.connection.forward_remote_path(str(tmp_path / "listener"), "/nowhere")
            for _ in range(20):
                process = await session.open_process("cat")
                for _ in range(20):
                    name = b"auth-agent-req@openssh.com"
                    packet = struct.pack(">I", len(name)) + name + b"\0"
                    process.channel.send_packet(CHANNEL_REQUEST, packet)
            assert (await session.run("echo served")).stdout == "served\n"
            assert len(agent_folders()) == 15
    await until(lambda: not agent_folders())


class _Greeting(asyncssh.SSHTCPSession[bytes]):
    """Writes a word, and that is it."""

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    def session_started(self) -> None:
        self._channel.write(b"hello")
        self._channel.write_eof()


async def _until_closed(port: int, most: int) -> list[socket.socket]:
    """Connect 300 times; return the connections that are still open when all others have been closed."""
    connections = [socket.create_connection(("127.0.0.1", port), SECONDS) for _ in range(300)]
    left = connections

    def few_are_left() -> bool:
        nonlocal left
        readable, _, _ = select.select(left, [], [], 0)
        for connection in readable:
            assert connection.recv(1) == b""
            connection.close()
        left = [connection for connection in left if connection not in readable]
        return len(left) <= most

    await until(few_are_left)
    return left


async def test_flood_of_a_guests_program_waits_for_the_client_within_the_limit(
    server: GuestServer,
) -> None:
    """Its connections are channels as soon as they are asked for; a late answer is served, and so are those that come later."""
    answers = asyncio.Event()

    async def accept(_host: str, _port: int) -> asyncssh.SSHTCPSession[bytes]:
        await answers.wait()
        return _Greeting()

    async with opened(server) as session:
        listener = await session.connection.create_server(accept, "127.0.0.1", 0)
        waiting = await _until_closed(listener.get_port(), CHANNELS)
        assert len(waiting) == CHANNELS
        assert await serves(server)
        answers.set()
        for connection in waiting:
            connection.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(connection, 5) == b"hello"
            connection.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
        assert await reader.read() == b"hello"
        writer.close()


async def test_listener_outlives_a_shortage_of_descriptors(server: GuestServer) -> None:
    """The connection that could not be accepted is, once there are some again."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with opened(server) as session:
        service = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = service.sockets[0].getsockname()[1]
        listener = await session.connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
        used = server.descriptors()
        free = next(number for number in range(len(used) + 1) if number not in used)
        before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (free, before[1]))
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
        # Asked for behind the connection, and answered: no process without descriptors.
        assert (await session.run("true")).returncode == 126
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        assert await reader.read() == b"hello"
        writer.close()
        service.close()


async def test_input_that_nobody_reads_is_bounded_and_its_program_ends(server: GuestServer) -> None:
    """The client is stopped, the server serves others, and the end of the connection is noticed."""
    async with opened(server) as session:
        process = await session.open_process("exec sleep 1000", encoding=None)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * MIB:
                process.stdin.write(bytes(MIB))
                sent += MIB
                async with asyncio.timeout(1):
                    await process.stdin.drain()
        assert 0 < sent < 32 * MIB
        assert server.memory() < MOST_MEMORY
        assert await serves(server)
        session.connection.abort()
    await server.until_childless()


@pytest.fixture
def silent_target(tmp_path: Path) -> Iterator[str]:
    """A Unix socket that accepts nothing: connections to it stay open, and take as much as a socket holds."""
    with socket.socket(socket.AF_UNIX) as target:
        target.bind(str(tmp_path / "target"))
        target.listen(2 * CHANNELS)
        yield str(tmp_path / "target")


async def test_closed_channels_whose_targets_go_on_are_held_for_a_bounded_time(
    server: GuestServer, silent_target: str
) -> None:
    """They count as channels, also of a connection that has ended."""
    async with opened(server) as session:
        for _ in range(CHANNELS):
            _, writer = await session.connection.open_unix_connection(silent_target)
            writer.write(b"x")
            writer.close()
            await writer.wait_closed()
        with pytest.raises(asyncssh.ChannelOpenError) as refused:
            await session.connection.open_unix_connection(silent_target)
        assert refused.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE
    assert await serves(server)
    assert len(server.descriptors()) > CHANNELS
    await until(lambda: len(server.descriptors()) < CHANNELS)


async def test_data_that_no_target_takes_holds_its_connection_for_a_bounded_time(
    server: GuestServer, silent_target: str
) -> None:
    """Three megabytes, which stop the client, are given up after their channels are closed."""
    async with opened(server) as session:
        for _ in range(6):
            _, writer = await session.connection.open_unix_connection(silent_target)
            writer.write(bytes(500_000))
            writer.close()
            await writer.wait_closed()
        assert (await session.run("echo again")).stdout == "again\n"
        assert server.memory() < MOST_MEMORY


async def test_output_that_nobody_reads_is_bounded(server: GuestServer) -> None:
    """Of a program that writes without end; its input is read while there is room."""
    async with opened(server) as session:
        process = await session.open_process("exec cat /dev/zero", encoding=None)
        await process.stdout.readexactly(MIB)
        for _ in range(3):
            assert await serves(server)
            assert server.memory() < MOST_MEMORY
        process.stdin.write(bytes(MIB))
        process.close()
        await server.until_childless()


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0, 1 << 20])
async def test_giant_packet_of_sftp_ends_that_channel_only(
    server: GuestServer, length: int
) -> None:
    """The SFTP server is a process of its own."""
    async with opened(server) as session:
        writer, reader, _ = await session.connection.open_session(subsystem="sftp", encoding=None)
        writer.write(struct.pack(">I", length) + bytes(100))
        assert await reader.read() == b""
        assert (await session.run("echo still here")).stdout == "still here\n"

"""A proxy with real clients and servers: what goes through, what is refused, what a hostile guest can do, and the log."""

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.proxy.conftest import Running, Start, Web

import vsock
from vsock.control.client import ControlClient
from vsock.forwarding import Forwarder, parse_end
from vsock.guest import Guest
from vsock.proxy.clients import Limits
from vsock.proxy.guests import names_from
from vsock.switch import Switch

SIZE = 4 << 20


async def talk(port: int, data: bytes, *, ends: bool = False) -> bytes:
    """What a proxy answers until it closes; `ends`: the client ends its data first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if ends:
        writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()


async def entry_of(running: Running, number: int = 0) -> Any:
    """An entry of the log, which is written when a connection is over."""
    deadline = asyncio.get_running_loop().time() + 30
    while len(running.entries) <= number:
        assert asyncio.get_running_loop().time() < deadline, running.entries
        await asyncio.sleep(0.01)
    return running.entries[number]


async def curl(*words: str) -> tuple[int, str]:
    """Exit code and output of curl."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--max-time", "30", "--noproxy", "", *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


Serve = Callable[[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]], Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a TCP server of 127.0.0.1 for a handler, and returns its port."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(handler: Any) -> int:
            async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                stack.callback(writer.transport.abort)
                await handler(reader, writer)

            server = await asyncio.start_server(handle, "127.0.0.1", 0)
            stack.callback(server.close)
            port: int = server.sockets[0].getsockname()[1]
            return port

        yield start


@pytest.mark.programs("curl")
async def test_curl_in_a_guest_reaches_a_host(
    guest: Guest, web: Web, run_proxy: Start, switch: Switch
) -> None:
    """By plain HTTP, CONNECT and SOCKS5; the name is resolved on the host, and the log names the guest."""
    rules = (f"localhost:{web.port}", f"127.0.0.1:{web.port}", f"[::1]:{web.port}")
    names = names_from(ControlClient(switch.runtime_dir))
    async with (
        run_proxy(*rules, ends=("host:3128",), names=names, guests={"alpha"}) as running,
        # What a program in the guest does, that gives its other programs a port of 127.0.0.1.
        Forwarder(
            parse_end("tcp:127.0.0.1:0"), parse_end("host:3128"), transport=guest.transport
        ) as inside,
    ):
        proxy = inside.address.removeprefix("tcp:")
        url = f"http://localhost:{web.port}/page?secret=1"
        for number, (protocol, *options) in enumerate(
            (
                ("http", "--proxy", f"http://{proxy}"),
                ("connect", "--proxytunnel", "--proxy", f"http://{proxy}"),
                ("socks5", "--socks5-hostname", proxy),
            )
        ):
            assert await curl(*options, url) == (0, "this is /page?secret=1\n")
            entry = await entry_of(running, number)
            assert (entry.protocol, entry.verdict, entry.reason) == (protocol, "allowed", None)
            assert (entry.cid, entry.guest, entry.listener) == (3, "alpha", "2:3128")
            assert entry.target == f"localhost:{web.port}"
            assert entry.bytes_out > 40
            assert entry.bytes_in > len("this is /page?secret=1\n")
            assert "secret" not in str(entry)
        assert [one.path for one in running.entries] == ["/page", None, None]


@pytest.mark.programs("curl")
async def test_refusals_are_clear_to_curl(web: Web, run_proxy: Start) -> None:
    """Status and one line in HTTP, the code in SOCKS5."""
    async with run_proxy("a.test") as running:
        proxy = f"127.0.0.1:{running.port}"
        url = f"http://localhost:{web.port}/"
        text = f"vsock proxy: localhost:{web.port} is not allowed\n"
        assert await curl("--proxy", f"http://{proxy}", url) == (0, text)
        code, said = await curl("--proxytunnel", "--proxy", f"http://{proxy}", url)
        assert (code, "403" in said) == (56, True)
        code, said = await curl("--socks5-hostname", proxy, url)
        assert (code, "(2)" in said) == (97, True)
        assert web.requests == []
        for number in range(3):
            entry = await entry_of(running, number)
            assert (entry.verdict, entry.cid, entry.guest) == ("refused", None, None)
            assert entry.reason == f"localhost:{web.port} is not allowed"


@pytest.mark.parametrize(
    ("command", "where", "target"),
    [
        (2, b"\3\x06a.test\0\x50", "a.test:80"),
        (3, b"\1\0\0\0\0\0\0", "0.0.0.0:0"),
        (3, b"\4" + bytes(15) + b"\1\0\x35", "[::1]:53"),
    ],
    ids=["BIND", "UDP ASSOCIATE without an address", "UDP ASSOCIATE"],
)
async def test_refused_commands_of_socks_are_logged_with_their_target(
    run_proxy: Start, command: int, where: bytes, target: str
) -> None:
    """The host and the port that the client names."""
    async with run_proxy("a.test") as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"\5\1\0" + bytes((5, command, 0)) + where)
        assert await reader.read() == b"\5\0\5\7\0\1\0\0\0\0\0\0"
        writer.close()
        entry = await entry_of(running, 0)
        assert (entry.protocol, entry.target, entry.verdict) == ("socks5", target, "refused")
        assert entry.reason == f"command {command} of SOCKS5; only CONNECT is"


@pytest.mark.programs("curl")
async def test_bodies_of_both_framings_arrive(web: Web, run_proxy: Start, tmp_path: Path) -> None:
    """With Content-Length and in chunks, also where the client waits for `100 Continue`."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    data.write_bytes(os.urandom(SIZE))
    async with run_proxy(f"127.0.0.1:{web.port}") as running:
        proxy = f"http://127.0.0.1:{running.port}"
        url = f"http://127.0.0.1:{web.port}/"
        for options in ((), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")):
            words = ("--proxy", proxy, *options, "--data-binary", f"@{data}", "-o", str(copy), url)
            assert await curl(*words) == (0, "")
            assert copy.read_bytes() == data.read_bytes()
        entry = await entry_of(running, 2)
        assert SIZE < entry.bytes_out < SIZE + 1000
        assert SIZE < entry.bytes_in < SIZE + 1000


async def test_names_that_lead_inside_are_refused(web: Web, run_proxy: Start) -> None:
    """A name on the list may lead anywhere by tomorrow; the client is not told where it leads."""
    async with run_proxy(f"localhost:{web.port}", "*:80") as running:
        answer = await talk(
            running.port, b"GET http://localhost:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % web.port
        )
        first, _, body = answer.partition(b"\r\n")
        assert first == b"HTTP/1.1 403 localhost:%d is not public" % web.port
        assert b"127.0.0.1" not in body
        assert "127.0.0.1" in (await entry_of(running)).reason
    assert web.requests == []


async def test_each_end_is_passed_on_alone(run_proxy: Start, serve: Serve) -> None:
    """The answer comes after the end of the question, and the question goes on after the end of the answer."""
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))
        writer.close()

    async def end_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        received.put_nowait(await reader.read())
        writer.close()

    ports = [await serve(answer_at_the_end), await serve(end_first)]
    async with run_proxy("127.0.0.1:*") as running:
        # The data follows the request at once, and goes behind it.
        connect = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % ports[0]
        answer = await talk(running.port, connect + bytes(SIZE), ends=True)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.partition(b"\r\n\r\n")[2] == b"%d" % SIZE
        assert (await entry_of(running)).bytes_out == SIZE
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"\5\1\0")
        assert await reader.readexactly(2) == b"\5\0"
        writer.write(b"\5\1\0\1\x7f\0\0\1" + ports[1].to_bytes(2))
        assert await reader.readexactly(10) == b"\5\0\0\1\0\0\0\0\0\0"
        assert await reader.read() == b""
        writer.write(b"late")
        writer.write_eof()
        assert await received.get() == b"late"
        writer.close()


async def test_loss_is_a_reset_and_not_an_end(run_proxy: Start, serve: Serve) -> None:
    """A client could take an end for the whole answer."""
    has_begun = asyncio.Event()

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async def begin_and_break_off(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await has_begun.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    port = await serve(break_off)
    async with run_proxy("127.0.0.1:*") as running:
        with pytest.raises(ConnectionResetError):
            await talk(running.port, b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\nline\n" % port)
        entry = await entry_of(running)
        assert (entry.verdict, entry.reason) == ("failed", "Connection reset by peer")
        answer = await talk(running.port, b"GET http://127.0.0.1:%d/ HTTP/1.0\r\n\r\n" % port)
        assert answer.startswith(b"HTTP/1.1 502 127.0.0.1:%d: Connection reset by peer\r\n" % port)
        assert (await entry_of(running, 1)).verdict == "failed"
        # Once the answer has begun, nothing else can be said.
        port = await serve(begin_and_break_off)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET http://127.0.0.1:%d/ HTTP/1.0\r\n\r\n" % port)
        assert (await reader.readuntil(b"hel")).startswith(b"HTTP/1.1 200 ")
        has_begun.set()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert (await entry_of(running, 2)).verdict == "failed"


async def test_body_that_breaks_off_is_a_reset_for_the_server(
    run_proxy: Start, serve: Serve
) -> None:
    """A server could take what came for the whole body."""
    seen: asyncio.Queue[BaseException | bytes] = asyncio.Queue()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            seen.put_nowait(await reader.read())
        except OSError as error:
            seen.put_nowait(error)

    port = await serve(read)
    head = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with run_proxy("127.0.0.1:*") as running:
        answer = await talk(running.port, head % port + b"5\r\nhello\r\nnonsense\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        async with asyncio.timeout(30):
            assert isinstance(await seen.get(), ConnectionResetError)
        assert (await entry_of(running)).verdict == "refused"


async def test_answer_before_the_end_of_the_body_arrives_whole(
    run_proxy: Start, serve: Serve
) -> None:
    """A server that takes no such body says so, and reads no more."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
        await writer.drain()
        writer.write_eof()

    port = await serve(refuse)
    head = b"PUT http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome"
    async with run_proxy("127.0.0.1:*") as running:
        answer = await talk(running.port, head % port)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.endswith(b"\r\n\r\nlarge")
        entry = await entry_of(running)
        assert (entry.verdict, entry.reason) == ("allowed", None)


async def test_second_request_on_a_connection_goes_nowhere(web: Web, run_proxy: Start) -> None:
    """Neither one that is sent behind the first nor one that is hidden in it; the answer arrives whole."""
    request = (
        b"POST http://127.0.0.1:%d/first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
        b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % web.port
    )
    both = (
        b"POST http://127.0.0.1:%d/first HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n" % web.port
    )
    async with run_proxy(f"127.0.0.1:{web.port}") as running:
        assert (await talk(running.port, request)).endswith(b"hello")
        assert (await talk(running.port, both)).startswith(b"HTTP/1.1 400 ")
    assert [(method, path) for method, path, *_ in web.requests] == [("POST", "/first")]


async def test_credentials_are_added_for_their_host_alone(
    web: Web, run_proxy: Start, serve: Serve
) -> None:
    """In place of what the guest sends; the guest learns of them neither by the answer nor by TRACE."""
    credentials = {("localhost", web.port): ((b"Authorization", b"Bearer xyz"),)}
    rules = ("*:*", "127.0.0.1:*", "[::1]:*")
    request = "{} http://{}:{}/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer guest\r\n\r\n"
    async with run_proxy(*rules, credentials=credentials) as running:
        answer = await talk(running.port, request.format("GET", "LOCALHOST.", web.port).encode())
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert web.headers("Authorization") == ["Bearer xyz"]
        assert b"xyz" not in answer
        await talk(running.port, request.format("GET", "127.0.0.1", web.port).encode())
        assert web.headers("Authorization") == ["Bearer guest"]
        answer = await talk(running.port, request.format("TRACE", "localhost", web.port).encode())
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert "xyz" not in str(running.entries)


async def test_only_named_guests_are_served(
    guest: Guest, switch: Switch, web: Web, run_proxy: Start
) -> None:
    """Also after the CID of a named guest was given to another; who is refused gets an answer."""
    request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % web.port
    names = names_from(ControlClient(switch.runtime_dir))

    async def ask() -> bytes:
        reader, writer = await vsock.open_connection((2, 3128), transport=guest.transport)
        writer.write(request)
        answer = await reader.readline()
        writer.close()
        return answer

    rule = f"127.0.0.1:{web.port}"
    async with run_proxy(rule, ends=("host:3128",), names=names, guests={"beta"}) as running:
        assert await ask() == b"HTTP/1.1 403 this proxy is for other guests\r\n"
        assert (await entry_of(running)).guest == "alpha"
    async with run_proxy(rule, ends=("host:3128",), names=dict, guests={"alpha"}):
        # The switch does not tell names: nobody is let in by one.
        assert await ask() == b"HTTP/1.1 403 this proxy is for other guests\r\n"
    async with run_proxy(rule, ends=("host:3128",), names=names, guests={"alpha"}):
        assert await ask() == b"HTTP/1.1 200 OK\r\n"
        await asyncio.to_thread(switch.remove_guest, "beta")
        await asyncio.to_thread(switch.change_guest, "alpha", cid=33)
        assert await ask() == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "begun", [b"", b"GET http://a/ HTTP/1.1\r\nX: ", b"\5", b"\5\1\0\5\1\0\3\x09a"]
)
async def test_client_that_does_not_say_what_it_wants_is_given_up(
    run_proxy: Start, begun: bytes
) -> None:
    """Whatever it sends from time to time."""
    async with run_proxy("a.test", seconds=0.3) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(begun)

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while begun.startswith(b"GET"):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        answer = await reader.read()
        assert answer.startswith({b"G": b"HTTP/1.1 400 ", b"\5": b"\5"}.get(begun[:1], b""))
        dripping.cancel()
        writer.close()
        entry = await entry_of(running)
        assert (entry.verdict, entry.target) == ("refused", None)
        assert entry.reason == "no whole request within 0.3 s"


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes everything and says nothing."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            pass
        await asyncio.Event().wait()


async def test_plain_request_has_an_answer_in_time(run_proxy: Start, serve: Serve) -> None:
    """An interim answer is none; who has it already gets a reset."""

    async def go_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await hang(reader, writer)

    request = b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    ports = [await serve(hang), await serve(go_on)]
    async with run_proxy("127.0.0.1:*", seconds=1.0) as running, asyncio.timeout(30):
        answer = await talk(running.port, request % ports[0], ends=True)
        text = f"127.0.0.1:{ports[0]}: no answer within 1 s"
        assert answer.startswith(f"HTTP/1.1 504 {text}\r\n".encode())
        entry = await entry_of(running)
        assert (entry.verdict, entry.reason) == ("failed", text)
        with pytest.raises(ConnectionResetError):
            await talk(running.port, request % ports[1])
        assert (await entry_of(running, 1)).verdict == "failed"


async def test_client_that_is_gone_holds_no_place(run_proxy: Start, serve: Serve) -> None:
    """Long before its answer would have had to come."""
    has_come = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        has_come.set()
        await hang(reader, writer)

    request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % await serve(take)
    async with run_proxy("127.0.0.1:*", seconds=600.0) as running, asyncio.timeout(30):
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(request)
        await has_come.wait()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        entry = await entry_of(running)
        assert (entry.verdict, entry.reason) == ("failed", "Connection reset by peer")


@pytest.mark.parametrize("ends", [False, True])
async def test_connection_without_bytes_ends(run_proxy: Start, serve: Serve, ends: bool) -> None:
    """Also one of which a direction has ended: nobody may come back to it."""
    connect = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\n\r\n" % await serve(hang)
    async with run_proxy("127.0.0.1:*", idle_seconds=0.2) as running, asyncio.timeout(30):
        with pytest.raises(ConnectionResetError):
            await talk(running.port, connect, ends=ends)
        entry = await entry_of(running)
        assert (entry.verdict, entry.reason) == ("failed", "no bytes for 0.2 s")


async def test_headers_without_end_take_no_more_than_they_may(run_proxy: Start) -> None:
    """The client is told, and what it still sends is read for a moment only."""
    async with run_proxy("a.test") as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET http://a/ HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                writer.write(b"X-Filler: " + b"x" * 1000 + b"\r\n")
                await writer.drain()
        with contextlib.suppress(ConnectionError):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 more than")
        writer.close()
        assert "bytes of headers" in (await entry_of(running)).reason


async def test_guest_with_too_many_connections_keeps_nobody_out(
    guest: Guest, web: Web, run_proxy: Start
) -> None:
    """Those that are too many are closed, and counted in its next entry."""
    request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % web.port
    limits = Limits(connections=3)
    ends = ("host:3128", "tcp:127.0.0.1:0")
    async with run_proxy(f"127.0.0.1:{web.port}", ends=ends, limits=limits) as running:
        held = [await vsock.open_connection((2, 3128), transport=guest.transport) for _ in range(3)]
        for _ in range(5):
            reader, writer = await vsock.open_connection((2, 3128), transport=guest.transport)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert (await talk(running.port, request)).startswith(b"HTTP/1.1 200 ")
        reader, writer = held[0]
        writer.write(request)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        for _, writer in held:
            writer.close()
        assert [(await entry_of(running, n)).turned_away for n in range(2)] == [0, 5]


async def test_hundreds_of_connections_at_once(run_proxy: Start, serve: Serve) -> None:
    """Each has its own bytes, and one that does not read stops nobody else."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    port = await serve(echo)
    connect = b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\n" % port
    limits = Limits(connections=1000, rate=10_000)
    async with run_proxy("127.0.0.1:*", limits=limits) as running:
        _, stuck = await asyncio.open_connection("127.0.0.1", running.port)
        stuck.write(connect + bytes(64 << 20))
        clients = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(300)]
        for number, (_, writer) in enumerate(clients):
            writer.write(connect + b"%d\n" % number)
        for number, (reader, _) in enumerate(clients):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await reader.readline() == b"%d\n" % number
        for _, writer in clients:
            writer.close()
            await writer.wait_closed()
        stuck.transport.abort()


async def test_failures_of_a_host_are_told(run_proxy: Start) -> None:
    """Nobody listens there, and there is no such name; the codes are those of the protocols."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    async with run_proxy("127.0.0.1:*", "nowhere.invalid:*") as running:
        answer = await talk(running.port, b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\n" % port)
        assert answer.startswith(b"HTTP/1.1 502 127.0.0.1:%d: Connection refused\r\n" % port)
        answer = await talk(running.port, b"\5\1\0\5\1\0\1\x7f\0\0\1" + port.to_bytes(2), ends=True)
        assert answer == b"\5\0\5\5\0\1\0\0\0\0\0\0"
        answer = await talk(running.port, b"CONNECT nowhere.invalid:80 HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 nowhere.invalid has no address\r\n")
        assert [(await entry_of(running, n)).verdict for n in range(3)] == ["failed"] * 3


async def test_proxy_whose_log_fails_serves_no_more(web: Web, run_proxy: Start) -> None:
    """Nothing may go unseen."""
    from vsock.proxy.rules import Rules
    from vsock.proxy.server import Proxy, Settings

    def write(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with Proxy([parse_end("tcp:127.0.0.1:0")], Settings(rules=Rules([])), write) as proxy:
        port = int(proxy.addresses[0].rpartition(":")[2])
        await talk(port, b"CONNECT a.test:1 HTTP/1.0\r\n\r\n")
        with pytest.raises(OSError, match="No space left"):
            async with asyncio.timeout(30):
                await proxy.wait()


async def test_log_has_what_was_refused(run_proxy: Start) -> None:
    """As far as it could be read."""
    rest = b" HTTP/1.1\r\nHost: a\r\n\r\n"
    async with run_proxy("a.test") as running:
        await talk(running.port, b"TRACE http://a.test/x" + rest)
        entry = await entry_of(running)
        assert (entry.method, entry.target, entry.path) == ("TRACE", "a.test:80", "/x")
        await talk(running.port, b"GET /x" + rest)
        entry = await entry_of(running, 1)
        assert (entry.method, entry.target) == ("GET", None)


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
async def test_host_is_sent_nothing_that_the_log_does_not_have(
    run_proxy: Start, serve: Serve, method: str
) -> None:
    """The first line is written before the client can send anything, and has the number of the last."""
    seen: list[list[str]] = []

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        seen.append([one.verdict for one in running.log])
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    port = await serve(look)
    target = f"127.0.0.1:{port}" if method == "CONNECT" else f"http://127.0.0.1:{port}/"
    request = f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\nx".encode()
    async with run_proxy("127.0.0.1:*") as running:
        assert b" 204 " in await talk(running.port, request)
        await entry_of(running)
        assert seen == [["opened"]]
        first, last = running.log
        assert (first.number, first.time, first.target) == (last.number, last.time, last.target)
        assert (first.bytes_out, last.verdict) == (0, "allowed")


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
async def test_request_that_cannot_be_logged_is_refused(serve: Serve, method: str) -> None:
    """The host gets no byte of it."""
    from vsock.proxy.rules import Rules, parse_rule
    from vsock.proxy.server import Proxy, Settings

    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.put_nowait(await reader.read())

    def write(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    port = await serve(take)
    target = f"127.0.0.1:{port}" if method == "CONNECT" else f"http://127.0.0.1:{port}/"
    settings = Settings(rules=Rules([parse_rule("127.0.0.1:*")]))
    async with Proxy([parse_end("tcp:127.0.0.1:0")], settings, write) as proxy:
        own = int(proxy.addresses[0].rpartition(":")[2])
        answer = await talk(own, f"{method} {target} HTTP/1.1\r\nHost: a\r\n\r\nx".encode())
        assert answer.startswith(b"HTTP/1.1 500 the log of this proxy cannot be written\r\n")
        async with asyncio.timeout(30):
            assert await received.get() == b""


async def test_fault_of_the_proxy_is_not_logged_as_allowed(run_proxy: Start) -> None:
    """Here of the settings."""

    class Broken(dict[Any, Any]):
        def get(self, *_: object) -> Any:
            raise RuntimeError("broken")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with run_proxy("127.0.0.1:*", credentials=Broken()) as running:
            request = b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: a\r\n\r\n" % port
            with contextlib.suppress(ConnectionError):
                assert await talk(running.port, request) == b""
            entry = await entry_of(running)
            assert (entry.verdict, entry.reason) == ("failed", "a fault of the proxy: RuntimeError")


async def test_probe_that_says_nothing_is_no_request(run_proxy: Start) -> None:
    """As `vsock wait --port` connects; the log has the next one alone."""
    async with run_proxy("a.test") as running:
        assert await talk(running.port, b"", ends=True) == b""
        await talk(running.port, b"CONNECT b.test:1 HTTP/1.0\r\n\r\n")
        assert (await entry_of(running)).target == "b.test:1"


async def test_end_of_the_block_ends_what_is_open(run_proxy: Start, serve: Serve) -> None:
    """With an entry in the log."""

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()

    port = await serve(wait)
    async with run_proxy("127.0.0.1:*") as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.0\r\n\r\n" % port)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert [one.reason for one in running.entries] == ["the proxy ended"]

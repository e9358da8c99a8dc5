"""A `vsock.socket` in event loops and servers of other libraries: asyncio, uvloop, trio, selectors.

(ssl and sendfile are in test_sockets_in_use.py.) They use its descriptor, and it must behave as they expect of a socket.
"""

import asyncio
import os
import selectors
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
import uvloop

import vsock
from vsock import CID_ANY, CID_LOCAL

PORT = 5000
SIZE = 1_000_000

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def run(request) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine in a loop of each kind."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(coroutine)

    return run


def test_loop_moves_data_with_its_socket_calls(switch, run):
    """sock_connect, sock_accept, sock_sendall, sock_recv, sock_recv_into."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with vsock.create_server(PORT) as listener, vsock.socket() as ours:
            listener.setblocking(False)
            ours.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            await loop.sock_connect(ours, (CID_LOCAL, PORT))
            theirs, _ = await accepting
            with theirs:
                theirs.setblocking(False)
                sending = asyncio.ensure_future(loop.sock_sendall(ours, bytes(SIZE)))
                got = 0
                while got < SIZE:
                    got += len(await loop.sock_recv(theirs, 65536))
                await sending
                await loop.sock_sendall(theirs, b"back")
                buffer = bytearray(10)
                assert await loop.sock_recv_into(ours, buffer) == 4

    run(main())


def test_loop_connect_that_is_refused_raises_the_refusal(switch, run):
    """sock_connect waits for writability and reads SO_ERROR."""

    async def main() -> None:
        with vsock.socket() as sock:
            sock.setblocking(False)
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_connect(sock, (CID_LOCAL, PORT))

    run(main())


def test_streams_and_server_work_in_the_loop(switch, run):
    """open_connection and start_server, and a loop's server with a `vsock.socket`."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main() -> None:
        server = await vsock.start_server(echo, (CID_ANY, PORT))
        reader, writer = await vsock.open_connection((CID_LOCAL, PORT))
        writer.write(bytes(SIZE))
        writer.write_eof()
        assert len(await reader.read()) == SIZE
        writer.close()
        await writer.wait_closed()
        server.close()

    run(main())


def test_server_in_the_loop_is_closed_when_its_switch_stops(runtime_dir, run):
    """No loop may spin on the dead descriptor."""

    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told_: told.append(told_))
        with vsock.Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch:
            server = await vsock.start_server(lambda *_: None, (CID_ANY, PORT))
            assert server.is_serving()
            switch.stop()
            await asyncio.wait_for(server.wait_closed(), 10)
        assert [type(one["exception"]) for one in told] == [vsock.SwitchGone]

    run(main())


def test_loop_watches_readiness(switch, run):
    """add_reader and add_writer on the descriptor."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with vsock.create_server(PORT) as listener:
            is_readable = asyncio.Event()
            loop.add_reader(listener, is_readable.set)
            with vsock.create_connection((CID_LOCAL, PORT)) as ours:
                await asyncio.wait_for(is_readable.wait(), 10)
                loop.remove_reader(listener)
                theirs, _ = listener.accept()
                is_writable = asyncio.Event()
                loop.add_writer(ours, is_writable.set)
                await asyncio.wait_for(is_writable.wait(), 10)
                loop.remove_writer(ours)
                theirs.close()

    run(main())


def test_trio_streams_talk_and_see_the_end(switch):
    """trio wraps the descriptor in a socket of its own kind."""

    def wrap(sock: socket.socket) -> trio.SocketStream:
        family, kind = sock.family, sock.type
        fd = sock.detach()
        return trio.SocketStream(trio.socket.fromfd(fd, family, kind))

    async def main() -> None:
        with vsock.create_server(PORT) as listener, trio.fail_after(10):
            ours = wrap(vsock.create_connection((CID_LOCAL, PORT)))
            await trio.lowlevel.wait_readable(listener)
            theirs = wrap(listener.accept()[0])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send_all, bytes(SIZE))
                got = 0
                while got < SIZE:
                    got += len(await theirs.receive_some())
            await ours.send_eof()
            assert await theirs.receive_some() == b""
            await ours.aclose()
            await theirs.aclose()

    trio.run(main)


def test_trio_waits_for_a_non_blocking_connect(switch):
    """wait_writable, then finish_connect."""

    async def main() -> None:
        with vsock.create_server(PORT), vsock.socket() as sock, trio.fail_after(10):
            sock.setblocking(False)
            sock.connect_ex((CID_LOCAL, PORT))
            await trio.lowlevel.wait_writable(sock)
            sock.finish_connect()
            assert sock.getpeername() == (CID_LOCAL, PORT)

    trio.run(main)


def test_selector_tells_readiness_of_listener_and_connection(switch):
    """The default selector, as many servers use it."""
    with (
        selectors.DefaultSelector() as selector,
        vsock.create_server(PORT) as listener,
    ):
        selector.register(listener, selectors.EVENT_READ)
        assert selector.select(0) == []
        with vsock.create_connection((CID_LOCAL, PORT)) as ours:
            assert [key.fileobj for key, _ in selector.select(10)] == [listener]
            theirs, _ = listener.accept()
            with theirs:
                selector.register(theirs, selectors.EVENT_READ)
                assert selector.select(0) == []
                ours.send(b"x")
                assert [key.fileobj for key, _ in selector.select(10)] == [theirs]
                selector.unregister(theirs)


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """A server of the standard library with a `vsock.socket`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname(), _Echo)
        self.socket = listener

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def shutdown_request(self, request: Any) -> None:
        request.close()


def test_socketserver_serves_lines(switch):
    """A handler with files, a thread per connection."""
    with vsock.create_server(PORT) as listener:
        server = _Server(listener)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with vsock.create_connection((CID_LOCAL, PORT)) as ours, ours.makefile("rw") as lines:
                for text in ("one\n", "two\n"):
                    lines.write(text)
                    lines.flush()
                    assert lines.readline() == text
        finally:
            server.shutdown()
            thread.join()


def test_forked_child_goes_on_with_the_connection(switch):
    """Both processes hold the same socket; it ends when the last one closes it."""
    with (
        vsock.create_server(PORT) as listener,
        vsock.create_connection((CID_LOCAL, PORT)) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:
            child = os.fork()
            if child == 0:
                ours.sendall(b"from the child")
                os._exit(0)
            ours.close()
            data = b""
            while piece := theirs.recv(100):
                data += piece
            assert data == b"from the child"
            assert os.waitpid(child, 0)[1] == 0


def test_child_process_inherits_a_descriptor(switch):
    """A program without vsock reads and writes it."""
    with (
        vsock.create_server(PORT) as listener,
        vsock.create_connection((CID_LOCAL, PORT)) as ours,
    ):
        theirs, _ = listener.accept()
        ours.sendall(b"upper case")
        ours.shutdown(socket.SHUT_WR)
        with theirs:
            fd = theirs.fileno()
            subprocess.run(["tr", "a-z", "A-Z"], stdin=fd, stdout=fd, check=True)
        assert ours.makefile("rb").read() == b"UPPER CASE"

"""Listeners that come back with their switch: `create_server` and `start_server` with `reconnect=True` (A5b)."""

import asyncio
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

import vsock
from vsock import CID_LOCAL, SOCK_SEQPACKET, SOCK_STREAM

PORT = 5000
DEADLINE = 30

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def connected(kind: int = SOCK_STREAM) -> socket.socket:
    """A connection to the server, as soon as it listens again."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return vsock.create_connection((CID_LOCAL, PORT), DEADLINE, type=kind)
        except vsock.ConnectRefused:
            assert time.monotonic() < deadline


@pytest.fixture
def restart(runtime_dir: Path) -> Iterator[Callable[[], None]]:
    """Ends the running switch, if any, and starts another."""
    switches: list[vsock.Switch] = []

    def restart() -> None:
        for old in switches:
            old.stop()
        switches[:] = [vsock.Switch(runtime_dir=runtime_dir)]
        switches[0].start()

    restart()
    yield restart
    switches[0].stop()


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET])
def test_blocking_listener_accepts_from_the_next_switch(restart, kind):
    """On the same port, with the options and the backlog that were set."""
    with vsock.create_server(PORT, type=kind, backlog=1, reconnect=True) as listener:
        listener.setsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_SIZE, 4096)
        listener.listen(3)
        for _ in range(3):
            restart()
            with connected(kind) as ours, listener.accept()[0] as theirs:
                ours.send(b"hello")
                assert theirs.recv(100) == b"hello"
                assert theirs.getsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_SIZE) == 4096
                assert theirs.getsockname() == (CID_LOCAL, PORT)
        waiting = [connected(kind) for _ in range(4)]
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((CID_LOCAL, PORT), DEADLINE, type=kind)
        for client in waiting:
            client.close()


def test_port_that_was_chosen_stays(restart):
    """A listener on any free port has the same one afterwards."""
    with vsock.create_server((CID_LOCAL, vsock.PORT_ANY), reconnect=True) as listener:
        before = listener.getsockname()
        restart()
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                vsock.create_connection(before, DEADLINE).close()
                break
            except vsock.ConnectRefused:
                assert time.monotonic() < deadline
        theirs, peer = listener.accept()
        theirs.close()
        assert peer.cid == CID_LOCAL


@pytest.mark.parametrize("how", ["start_server", "sock"])
@pytest.mark.parametrize("loop", LOOPS)
def test_server_of_a_loop_goes_on_with_the_next_switch(restart, loop, how):
    """`vsock.start_server`, and the loop's own server with such a listener."""
    if (loop, how) == ("uvloop", "sock"):
        pytest.skip(
            "uvloop accepts at the descriptor itself, which is none of a listening Unix socket"
        )

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read(100)).upper())
        writer.close()

    async def ask() -> bytes:
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                reader, writer = await vsock.open_connection((CID_LOCAL, PORT), timeout=DEADLINE)
            except vsock.ConnectRefused:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
                continue
            writer.write(b"hello")
            answer = await reader.read()
            writer.close()
            return answer

    async def main() -> None:
        if how == "sock":
            listener = vsock.create_server(PORT, reconnect=True)
            server: asyncio.AbstractServer = await asyncio.start_server(shout, sock=listener)
        else:
            server = await vsock.start_server(shout, PORT, reconnect=True)
        async with server:
            for _ in range(3):
                assert await ask() == b"HELLO"
                await asyncio.to_thread(restart)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def test_connections_that_waited_at_a_dead_switch_are_read_to_their_end(restart):
    """They do not count in the next switch's queue."""
    with vsock.create_server(PORT, backlog=1, reconnect=True) as listener:
        early = [connected() for _ in range(2)]
        assert select.select([listener], [], [], DEADLINE)[0]
        restart()
        late = [connected() for _ in range(2)]
        for _ in early:
            with listener.accept()[0] as theirs:
                assert theirs.recv(1) == b""
        for client in late:
            client.sendall(b"x")
            with listener.accept()[0] as theirs:
                assert theirs.recv(1) == b"x"
        for client in early + late + [connected(), connected()]:
            client.close()


PREFORK = """
import os, vsock
listener = vsock.create_server(5000, reconnect=True)
child = os.fork()
if child == 0:
    while True:
        with listener.accept()[0] as theirs:
            theirs.sendall(b'child')
os.waitpid(child, 0)
"""


def test_children_share_a_listener_that_comes_back(restart):
    """The thread in the parent serves them."""
    server = subprocess.Popen([sys.executable, "-c", PREFORK], start_new_session=True)
    with server:
        try:
            for _ in range(3):
                with connected() as ours:
                    assert ours.recv(100) == b"child"
                restart()
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def accept_once(listener: socket.socket) -> None:
    """Accept one connection, as a worker process."""
    with listener.accept()[0] as theirs:
        theirs.sendall(b"worker")


def test_worker_processes_get_a_listener_that_comes_back(restart):
    """By multiprocessing, as uvicorn passes it to its workers."""
    with vsock.create_server(PORT, reconnect=True) as listener:
        restart()
        worker = multiprocessing.get_context("spawn").Process(target=accept_once, args=(listener,))
        worker.start()
        with connected() as ours:
            assert ours.recv(100) == b"worker"
        worker.join(DEADLINE)
        assert worker.exitcode == 0


def test_closed_listener_gives_its_port_back(restart):
    """The port is free at once, and the thread ends; also while there is no switch."""
    for _ in range(3):
        with vsock.create_server(PORT, reconnect=True):
            pass
    listener = vsock.create_server(PORT, reconnect=True)
    restart()
    listener.close()
    names = [thread.name for thread in threading.enumerate()]
    assert "vsock-reconnect" not in names
    vsock.create_server(PORT).close()


def test_waiting_for_a_switch_costs_next_to_nothing(runtime_dir):
    """Neither the thread nor the program spins."""
    with vsock.Switch(runtime_dir=runtime_dir):
        listener = vsock.create_server(PORT, reconnect=True)
    with listener:
        before = time.process_time()
        assert select.select([listener], [], [], 1)[0] == []
        assert time.process_time() - before < 0.3


def test_listener_needs_a_switch_to_begin_with(runtime_dir):
    """A wrong directory is an error at once."""
    with pytest.raises(vsock.NoSwitch):
        vsock.create_server(PORT, reconnect=True)

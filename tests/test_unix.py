"""Unix sockets at given paths: restarted listeners (F4) and full queues (F5)."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

import vsock
from vsock import HybridAddress, UnixAddress

PORT = 7000

Form = Callable[[Path], UnixAddress | HybridAddress]

FORMS: dict[str, Form] = {
    "unix": lambda folder: UnixAddress(str(folder / "delta.vsock_7000")),
    "hvsock": lambda folder: HybridAddress(str(folder / "delta.vsock"), PORT),
}


@pytest.fixture(params=FORMS)
def address(request, runtime_dir: Path) -> UnixAddress | HybridAddress:
    """The address to listen on, in each form; all mean the same file."""
    return FORMS[request.param](runtime_dir)


@pytest.fixture
def file(runtime_dir: Path) -> Path:
    """The file of the listener."""
    return runtime_dir / "delta.vsock_7000"


def is_served(file: Path) -> bool:
    """Whether a process listens there."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(file)) == 0


def test_listener_removes_its_file_at_close(address, file):
    """The next listener can use the path (F4)."""
    for _ in range(2):
        with vsock.create_server(address):
            assert is_served(file)
        assert not file.exists()


def test_server_of_a_loop_removes_its_file(address, file):
    """start_server gives the same listener to asyncio."""

    async def main() -> None:
        async with await vsock.start_server(lambda *_: None, address):
            assert file.exists()

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
        assert not file.exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_cat_listens_again_however_it_ended(address, file, end):
    """A file that a killed server has left is replaced (F4)."""
    for _ in range(2):
        cat = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", "cat", "-l", str(address)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with cat:
            deadline = time.monotonic() + 30
            with socket.socket(socket.AF_UNIX) as caller:
                while caller.connect_ex(str(file)) != 0:
                    assert cat.poll() is None, cat.stderr and cat.stderr.read()
                    assert time.monotonic() < deadline
                cat.send_signal(end)
                cat.wait(30)


def test_listener_that_is_served_is_not_replaced(address, file):
    """The second listener fails, and the error names the file (F4)."""
    with vsock.create_server(address, backlog=0):
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for caller in (first, second):  # also with a full queue
                caller.setblocking(False)
                caller.connect_ex(str(file))
            with pytest.raises(OSError, match="delta.vsock_7000") as caught:
                vsock.create_server(address)
            assert caught.value.errno == errno.EADDRINUSE
    assert not file.exists()


def test_file_of_another_kind_is_not_replaced(address, file):
    """Only sockets are replaced."""
    file.write_text("mine")
    with pytest.raises(OSError, match="delta.vsock_7000"):
        vsock.create_server(address)
    assert file.read_text() == "mine"


def test_file_of_another_listener_is_not_removed(address, file):
    """A listener that has replaced it keeps its file."""
    with vsock.create_server(address):
        file.unlink()
        other = vsock.create_server(address)
    with other:
        assert is_served(file)


def test_forked_child_leaves_the_file(address, file):
    """The parent goes on listening."""
    with vsock.create_server(address) as listener:
        child = os.fork()
        if child == 0:
            listener.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert is_served(file)


def test_directory_that_is_not_there_is_named(runtime_dir):
    """The error has the path."""
    with pytest.raises(FileNotFoundError, match="nowhere/x"):
        vsock.create_server(UnixAddress(str(runtime_dir / "nowhere/x")))
    with pytest.raises(vsock.UsageError, match="x/path too long|AF_UNIX path too long"):
        vsock.create_server(UnixAddress(str(runtime_dir / ("x" * 120))))


# A queue that is full


@contextlib.contextmanager
def full_queue(path: Path) -> Iterator[tuple[socket.socket, int]]:
    """A listener whose queue is full until a connection is accepted."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        callers: list[socket.socket] = []
        while not callers or callers[-1].connect_ex(str(path)) == 0:
            callers.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            callers[-1].setblocking(False)
        yield listener, len(callers) - 1


@dataclass
class Busy:
    """A listener with a full queue."""

    address: UnixAddress | HybridAddress
    serve: Callable[[], None]
    """Accepts the waiting connections and one more, to which it sends "served"."""


@pytest.fixture(params=["unix", "hvsock"])
def busy(request, runtime_dir: Path) -> Iterator[Busy]:
    """A listener with a full queue, with an address of each form."""
    path = str(runtime_dir / "busy")
    is_unix = request.param == "unix"
    with full_queue(Path(path)) as (listener, waiting):
        yield Busy(
            UnixAddress(path) if is_unix else HybridAddress(path, PORT),
            lambda: serve(listener, waiting, not is_unix),
        )


def test_connect_to_a_full_queue_ends_when_it_should(busy):
    """ConnectTimeout, after the given time (F5)."""
    begun = time.monotonic()
    with pytest.raises(vsock.ConnectTimeout):
        vsock.create_connection(busy.address, 0.2)
    assert 0.2 <= time.monotonic() - begun < 4


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


def test_asyncio_connect_to_a_full_queue_ends_when_it_should(busy, run):
    """The full queue is not taken for a connection (F5)."""

    async def main() -> None:
        with pytest.raises(vsock.ConnectTimeout):
            await vsock.open_connection(busy.address, timeout=0.2)

    run(main())


def serve(listener: socket.socket, waiting: int, is_hybrid: bool) -> None:
    """Take the connections that fill the queue, and serve one more."""
    listener.settimeout(30)
    for _ in range(waiting):
        listener.accept()[0].close()
    with listener.accept()[0] as theirs:
        if is_hybrid:
            assert theirs.recv(100) == b"CONNECT 7000\n"
            theirs.sendall(b"OK 1\n")
        theirs.sendall(b"served")


def test_connect_of_a_loop_waits_for_a_place_in_the_queue(busy, run):
    """Then it is connected (F5)."""

    async def main() -> None:
        connecting = asyncio.ensure_future(vsock.open_connection(busy.address, timeout=30))
        done, _ = await asyncio.wait([connecting], timeout=0.05)
        assert not done
        serving = asyncio.ensure_future(asyncio.to_thread(busy.serve))
        reader, writer = await connecting
        assert await reader.read() == b"served"
        writer.close()
        await serving

    run(main())


def test_blocking_connect_waits_for_a_place_in_the_queue(busy):
    """As in a loop (F5)."""
    with ThreadPoolExecutor(2) as threads:
        connecting = threads.submit(vsock.create_connection, busy.address, 30)
        with pytest.raises(TimeoutError):
            connecting.result(0.05)
        serving = threads.submit(busy.serve)
        with connecting.result(30) as sock, sock.makefile("rb") as file:
            assert file.read() == b"served"
        serving.result(30)

"""Accepting connections: none is lost if descriptors run out (A4), and nothing spins (A5b)."""

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import vsock
from vsock import CID_LOCAL, SOCK_SEQPACKET, SOCK_STREAM

PORT = 5000
WAITING = 10
MANY = 120

SERVER = """
import resource, socket, sys
import vsock

def say(*words):
    print(*words, flush=True)

def hold():
    'Leave room for `room` descriptors.'
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        while True:
            held.append(open('/dev/null'))
    except OSError:
        pass
    return held

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
kind, room = int(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == 'vsock':
    listener = vsock.create_server(5000, type=kind)
else:
    listener = socket.socket(socket.AF_VSOCK, kind)
    listener.bind((0xffffffff, 5000))
    listener.listen(50)
say('listening')
input()
held = hold()
served = []
for _ in range(room):
    held.pop().close()
    served.append(listener.accept()[0])
for _ in range(5):
    try:
        listener.accept()
        say('accepted')
    except OSError as error:
        say(error.errno)
for file in held:
    file.close()
while len(served) < 10:
    served.append(listener.accept()[0])
for connection in served:
    connection.sendall(b'served')
    connection.close()
say('done')
"""


@pytest.fixture(params=["vsock", "run"])
def serve(
    request, runtime_dir: Path, start_preloaded
) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts SERVER, with `vsock.socket` or under `vsock run`."""
    with ExitStack() as stack:

        def serve(kind: int, room: int) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", SERVER, str(int(kind)), str(room), request.param]
            pipe = subprocess.PIPE
            if request.param == "run":
                process: subprocess.Popen[str] = start_preloaded(*command, stdin=pipe)
                return process
            return stack.enter_context(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            )

        yield serve


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET], ids=["stream", "seqpacket"])
@pytest.mark.parametrize("room", [0, 1])
def test_connections_wait_while_the_server_has_no_descriptor(switch, serve, kind, room):
    """Each accept is EMFILE, and all waiting clients are served when descriptors are free (A4)."""
    server = serve(kind, room)
    assert server.stdout.readline() == "listening\n"
    with ExitStack() as stack:
        clients = [
            stack.enter_context(vsock.create_connection((CID_LOCAL, PORT), 30, type=kind))
            for _ in range(WAITING)
        ]
        print(file=server.stdin, flush=True)
        said = [server.stdout.readline().strip() for _ in range(6)]
        assert said == [str(errno.EMFILE)] * 5 + ["done"]
        assert [client.recv(100) for client in clients] == [b"served"] * WAITING


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Lets this process open `count` more descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = []
    for number in range(before[0]):
        try:
            os.get_inheritable(number)
        except OSError:
            free.append(number)
        if len(free) > count:
            break
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def waiting(switch) -> Iterator[tuple[socket.socket, list[vsock.socket]]]:
    """A listener, and the clients in its queue; each has sent its number."""
    with ExitStack() as stack:
        listener = stack.enter_context(vsock.create_server(PORT))
        clients = []
        for number in range(MANY):
            clients.append(stack.enter_context(vsock.create_connection((CID_LOCAL, PORT), 30)))
            clients[-1].sendall(b"%d" % number)
        yield listener, clients


def test_threads_that_share_the_last_descriptors_lose_no_connection(waiting):
    """Threads that find no free descriptor get EMFILE; each connection is accepted once (A4)."""
    listener, clients = waiting
    listener.settimeout(0.2)
    got: list[bytes] = []

    def work() -> None:
        while True:
            try:
                with listener.accept()[0] as connection:
                    got.append(connection.recv(10))
            except TimeoutError:
                return
            except OSError as error:
                assert error.errno == errno.EMFILE

    threads = [threading.Thread(target=work) for _ in range(6)]
    with room_for(2):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == sorted(b"%d" % number for number in range(len(clients)))


def test_processes_that_share_a_listener_lose_no_connection(waiting):
    """Four processes with one descriptor each accept from one queue (A4)."""
    listener, clients = waiting
    start, starter = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.close(starter)
            os.read(start, 1)
            _serve_with_one_descriptor(listener)
        children.append(child)
    os.close(start)
    os.close(starter)
    try:
        assert [client.recv(10) for client in clients] == [b"served"] * len(clients)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _serve_with_one_descriptor(listener: socket.socket) -> None:
    """Serve until killed, as a forked child."""
    try:
        with room_for(1):
            while True:
                with listener.accept()[0] as connection:
                    connection.sendall(b"served")
    finally:
        os._exit(1)


def test_process_that_keeps_the_lock_of_a_listener_costs_the_others_time_only(waiting):
    """Also one that was stopped there, and with one descriptor for what is peeked at and what is taken (A4)."""
    listener, clients = waiting
    held, holds = os.pipe()
    child = os.fork()
    if child == 0:
        fcntl.lockf(listener, fcntl.LOCK_EX)
        os.write(holds, b"!")
        signal.pause()
    try:
        os.read(held, 1)
        with room_for(1), listener.accept()[0] as connection:
            connection.sendall(b"served")
        assert clients[0].recv(10) == b"served"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(held)
        os.close(holds)

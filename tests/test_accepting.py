"""Accepting connections: none is lost if descriptors run out (A4), and nothing spins (A5b)."""

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import vsock
from vsock import CID_LOCAL, SOCK_SEQPACKET, SOCK_STREAM

PORT = 5000
WAITING = 10
MANY = 120
MOST_WAITING = 50
"""How many connections LISTENING lets wait."""

LISTENING = """
import fcntl, os, resource, signal, socket, sys
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
    listener = vsock.create_server(5000, type=kind, backlog=50)
else:
    listener = socket.socket(socket.AF_VSOCK, kind)
    listener.bind((0xffffffff, 5000))
    listener.listen(50)
say('listening')
input()
"""

SERVER = """
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

NEIGHBOUR = """
held, holds = os.pipe()
child = os.fork()
if child == 0:
    fcntl.lockf(listener, fcntl.LOCK_EX)
    os.write(holds, b'!')
    signal.pause()
os.read(held, 1)
files = hold()
for file in files[:room]:
    file.close()
try:
    listener.accept()[0].sendall(b'served')
    say('done')
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
"""Accepts while another process keeps the lock of the listener, with room for `room` descriptors."""

THREADS = """
import threading
listener.settimeout(0.2)
got = []

def work():
    while True:
        try:
            connection = listener.accept()[0]
        except TimeoutError:
            return
        except OSError as error:
            if error.errno != 24:
                got.append(str(error))
        else:
            with connection:
                got.append(connection.recv(10).decode())

files = hold()
for file in files[:room]:
    file.close()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
say(*got)
"""
"""Six threads accept with room for `room` descriptors, and say what they received."""


@pytest.fixture(params=["vsock", "run"])
def serve(
    request, runtime_dir: Path, start_preloaded
) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a script after LISTENING, with `vsock.socket` or under `vsock run`."""
    with ExitStack() as stack:

        def serve(script: str, kind: int, room: int) -> "subprocess.Popen[str]":
            words = [str(int(kind)), str(room), request.param]
            command = [sys.executable, "-c", LISTENING + script, *words]
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
    server = serve(SERVER, kind, room)
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


def test_threads_that_share_the_last_descriptors_lose_no_connection(switch, serve):
    """Threads that find no free descriptor get EMFILE; each connection is accepted once (A4)."""
    server = serve(THREADS, SOCK_STREAM, room=2)
    assert server.stdout.readline() == "listening\n"
    with ExitStack() as stack:
        for number in range(MOST_WAITING):
            client = stack.enter_context(vsock.create_connection((CID_LOCAL, PORT), 30))
            client.sendall(b"%d" % number)
        print(file=server.stdin, flush=True)
        said = server.stdout.readline().split()
        assert sorted(said) == sorted(str(number) for number in range(MOST_WAITING))


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


def test_process_that_keeps_the_lock_of_a_listener_costs_the_others_time_only(switch, serve):
    """Also one that was stopped there, and with one descriptor for what is peeked at and what is taken (A4)."""
    server = serve(NEIGHBOUR, SOCK_STREAM, room=1)
    assert server.stdout.readline() == "listening\n"
    with vsock.create_connection((CID_LOCAL, PORT), 30) as client:
        print(file=server.stdin, flush=True)
        assert client.recv(10) == b"served"
    assert server.stdout.readline() == "done\n"

"""Sockets that are passed to another process, by `multiprocessing` or as a bare descriptor (A3)."""

import copy
import json
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from tests.sharing import workers

import vsock
from vsock import _client

PORT = 5000
METHODS = pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])


@METHODS
def test_connection_and_listener_are_arguments_of_a_process(switch, method):
    """The worker accepts a connection, and answers on the connection that it received."""
    context = multiprocessing.get_context(method)
    with vsock.create_server(PORT) as listener:
        ours = vsock.create_connection((1, PORT))
        theirs, _ = listener.accept()
        worker = context.Process(target=workers.serve_one, args=(listener, theirs))
        worker.start()
        theirs.close()
        with ours, vsock.create_connection((1, PORT)) as second:
            assert json.loads(second.makefile("rb").readline()) == {
                "ours": [1, PORT],
                "timeout": None,
                "state": "accepted",
            }
            told = json.loads(ours.makefile("rb").readline())
            assert told["theirs"] == [1, ours.getsockname().port]
        worker.join(30)
        assert worker.exitcode == 0


@METHODS
def test_connection_goes_through_a_pipe(switch, method):
    """Pipe.send keeps the socket's timeout."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=workers.echo_from_pipe, args=(there,))
    worker.start()
    with vsock.create_server(PORT) as listener, vsock.create_connection((1, PORT)) as ours:
        theirs, _ = listener.accept()
        theirs.settimeout(7.5)
        here.send(theirs)
        theirs.close()
        ours.sendall(b"hello")
        assert ours.recv(100) == b"7.5 hello"
    worker.join(30)
    assert worker.exitcode == 0


def test_connection_is_an_argument_of_a_pool(switch):
    """ProcessPoolExecutor."""
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        vsock.create_server(PORT) as listener,
        vsock.create_connection((1, PORT)) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:
            pool.submit(workers.say, theirs, b"from the pool").result(30)
        assert ours.recv(100) == b"from the pool"


def test_plain_pickles_and_copies_are_refused(switch):
    """As with every socket: a file cannot contain a descriptor."""
    multiprocessing.get_context("spawn").Pipe()
    with vsock.socket() as sock:
        for attempt in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError, match="pickle"):
                attempt(sock)
    with vsock.socket(vsock.SOCK_DGRAM) as sock, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(sock)


def test_descriptor_that_was_passed_is_the_same_socket(switch):
    """SCM_RIGHTS: addresses, options and shut down directions are kept; a listener accepts."""
    with vsock.create_server(PORT) as listener:
        client = vsock.socket()
        client.setsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_MAX_SIZE, (1 << 20).to_bytes(8, "little"))
        client.setsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_SIZE, (1 << 19).to_bytes(8, "little"))
        client.connect_timeout = 7
        client.bind((vsock.CID_ANY, 6000))
        client.connect((1, PORT))
        there, here = socket.socketpair()
        with there, here:
            socket.send_fds(there, [b"x"], [client.fileno(), listener.fileno()])
            _, fds, _, _ = socket.recv_fds(here, 1, 2)
        client.close()
        with vsock.socket.from_fd(fds[0]) as twin, vsock.socket.from_fd(fds[1]) as accepts:
            theirs, _ = accepts.accept()
            assert twin.getsockname() == client_name
            assert twin.getpeername() == (1, PORT)
            assert twin.connect_timeout == 7
            assert twin.getsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_SIZE, 8) == (1 << 19).to_bytes(
                8, "little"
            )
            with theirs:
                twin.sendall(b"hello")
                assert theirs.recv(10) == b"hello"
                twin.shutdown(socket.SHUT_WR)
                again = vsock.socket.from_fd(os.dup(twin.fileno()))
                with again, pytest.raises(BrokenPipeError):
                    again.send(b"x")


client_name = (vsock.CID_ANY, 6000)


@pytest.mark.parametrize("kind", ["pipe", "tcp", "unix"])
def test_descriptor_that_is_no_socket_of_ours_is_refused_and_stays_open(kind):
    """UsageError, or the kernel's error if the descriptor is no socket."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        reading, writing = os.pipe()
        fd = {"pipe": reading, "tcp": tcp.fileno(), "unix": unix.fileno()}[kind]
        with pytest.raises((vsock.UsageError, OSError)):
            vsock.socket.from_fd(fd)
        os.fstat(fd)
        os.close(reading)
        os.close(writing)


TAKE = """
import socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
print(s.getpeername(), s.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN), flush=True)
s.sendall(b"from a program that knows AF_VSOCK only")
"""


def test_program_under_vsock_run_takes_a_socket_of_the_librarys(
    switch: object, run_preloaded: Callable[..., str]
) -> None:
    """Both kinds of programs keep the same state in a socket."""
    with vsock.create_server(PORT) as listener, vsock.create_connection((1, PORT)) as ours:
        theirs, _ = listener.accept()
        with theirs:
            fd = theirs.fileno()
            said = run_preloaded(sys.executable, "-c", TAKE, str(fd), pass_fds=[fd])
        assert said == f"({theirs_name(ours)}) 40\n"
        assert ours.recv(100) == b"from a program that knows AF_VSOCK only"


def theirs_name(ours: socket.socket) -> str:
    """The address of `ours` as Python prints it for a peer."""
    return f"1, {ours.getsockname()[1]}"


def test_uvicorn_serves_with_two_workers(switch, runtime_dir):
    """Its workers get the listener as an argument of a spawned process."""
    program = Path(__file__).parent / "uvicorn_workers.py"
    with subprocess.Popen([sys.executable, program], text=True, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "listens\n"
        try:
            pids: set[bytes] = set()
            while len(pids) < 2:
                with vsock.create_connection((1, PORT), timeout=30) as ours:
                    ours.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = ours.makefile("rb").read()
                assert b" 200 OK" in answer
                pids.add(answer.rpartition(b"\r\n")[2])
        finally:
            server.terminate()
            server.wait(30)


def test_name_that_somebody_else_holds_does_not_matter(switch):
    """Another process can guess a cookie and bind the abstract name; that blocks nothing."""
    with (
        vsock.create_server(PORT) as listener,
        vsock.socket() as ours,
        socket.socket(socket.AF_UNIX) as other,
    ):
        other.bind(b"\0vsock/%016x/%08x/%08x" % (_client.cookie(ours), vsock.CID_ANY, 6000))
        ours.bind((vsock.CID_ANY, 6000))
        ours.connect((1, PORT))
        listener.accept()[0].close()
        with vsock.socket.from_fd(os.dup(ours.fileno())) as twin:
            assert twin.getsockname() == ours.getsockname() == (vsock.CID_ANY, 6000)


def test_switch_that_owes_an_answer_costs_the_descriptor_and_no_more(runtime_dir, monkeypatch):
    """A late answer to an abandoned attempt must not be taken for the answer to the next one."""
    monkeypatch.setattr(_client, "ANSWER_TIMEOUT", 0.2)
    with socket.socket(socket.AF_UNIX) as silent, vsock.socket() as ours:
        silent.bind(str(runtime_dir / "stream"))
        silent.listen()
        ours.setblocking(False)
        with pytest.raises(vsock.SwitchGone):
            ours.connect((3, PORT))
        with pytest.raises(OSError, match="Invalid argument"):
            ours.connect((4, PORT))

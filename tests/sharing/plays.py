"""One socket, two who look at it while it connects: each play must give both the right answer and lose no byte (A1).

    plays.py api|plain SITUATION COUNT

`api` plays with `vsock.socket`, `plain` with Python's own AF_VSOCK, under `vsock run`. Prints a line for each
play that went wrong, and how many were played. The server, in this process, sends 128 bytes to each client and leaves.
"""

import errno
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import vsock
from vsock.cli.guard import raise_guard

PORT = 5000
PATTERN = bytes(range(128))
DEADLINE = 30
Look = Callable[[Any], object]


def make_api() -> Any:
    """A new socket of the library's."""
    return vsock.socket()


def make_plain() -> Any:
    """A new socket of Python's."""
    return socket.socket(40, socket.SOCK_STREAM)


make = make_api if sys.argv[1] == "api" else make_plain


def serve(listener: Any) -> None:
    """Send the pattern to whoever comes."""
    while True:
        connection, _ = listener.accept()
        connection.sendall(PATTERN)
        connection.close()


def rest(sock: Any) -> bytes:
    """All that comes until the end."""
    return b"".join(iter(lambda: sock.recv(1024), b""))


def whole(sock: Any) -> bytes:
    """As many bytes as are sent. A child may hold a copy of the server's end, and then there is no end for it."""
    got = b""
    while len(got) < len(PATTERN) and (piece := sock.recv(1024)):
        got += piece
    return got


def in_thread(look: Look, sock: Any) -> tuple[threading.Thread, list[object]]:
    """Look again and again, in another thread, until the look succeeds; errors that say "not yet" do not count."""
    faults: list[object] = []

    def run() -> None:
        while True:
            try:
                look(sock)
            except OSError as error:
                if error.errno in (errno.ENOTCONN, errno.EAGAIN):
                    continue
                faults.append(error)
            return

    thread = threading.Thread(target=run)
    thread.start()
    return thread, faults


def beside(look: Look, looked_at: Look = lambda sock: sock) -> str:
    """A blocking connect, and another thread that looks."""
    with make() as sock:
        thread, faults = in_thread(look, looked_at(sock))
        sock.connect((1, PORT))
        thread.join(DEADLINE)
        got = rest(sock)
    return "" if got == PATTERN and not faults else f"{len(got)} bytes, {faults}"


def writable(sock: Any) -> None:
    """Wait as programs wait for a connect."""
    if not select.select([], [sock], [], DEADLINE)[1]:
        raise TimeoutError


def select_and_name(sock: Any) -> None:
    """What CPython's TCPCloserTest does."""
    select.select([sock], [], [], DEADLINE)
    sock.getpeername()


def select_and_peek(sock: Any) -> None:
    """Look at the first byte."""
    select.select([sock], [], [], DEADLINE)
    assert sock.recv(1, socket.MSG_PEEK) == PATTERN[:1]


def so_error(sock: Any) -> None:
    """Ask how the connect ended, until there is a name."""
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    sock.getpeername()


def name_ourselves(sock: Any) -> None:
    """Ask for our own address until there is a connection."""
    sock.getsockname()
    sock.getpeername()


def without_waiting(sock: Any) -> None:
    """Begin a connect."""
    sock.setblocking(False)
    assert sock.connect_ex((1, PORT)) in (0, errno.EINPROGRESS)


def two_threads_ask() -> str:
    """A non-blocking connect, and two threads that wait for it and ask for its end at once."""
    with make() as sock:
        without_waiting(sock)
        barrier = threading.Barrier(2)
        faults: list[object] = []

        def ask() -> None:
            writable(sock)
            barrier.wait(DEADLINE)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                faults.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        sock.setblocking(True)
        got = rest(sock)
    return "" if got == PATTERN and not faults else f"{len(got)} bytes, {faults}"


def fork(*, at_once: bool) -> str:
    """A non-blocking connect, then a fork; the parent asks first, or both at once. The child takes the data."""
    with make() as sock:
        without_waiting(sock)
        ready, go = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                if at_once:
                    writable(sock)
                else:
                    os.read(ready, 1)
                if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    sock.setblocking(True)
                    status = 0 if sock.getpeername()[1] == PORT and whole(sock) == PATTERN else 2
            finally:
                os._exit(status)
        writable(sock)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        os.write(go, b"x")
        _, status = os.waitpid(child, 0)
        os.close(ready)
        os.close(go)
    return "" if not error and not status else f"errno {error}, the child's status {status}"


def is_refused(sock: Any) -> int:
    """2 if this socket has become a connection, 1 if we are told why not, 0 if somebody else was."""
    writable(sock)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        sock.getpeername()
    except OSError as missing:
        if missing.errno == errno.ENOTCONN:
            return int(error == errno.ECONNRESET)
    return 2


def refused_fork() -> str:
    """A non-blocking connect to where nobody listens, a fork, and both ask at once: one at least is told."""
    with make() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((1, PORT + 1)) == errno.EINPROGRESS
        child = os.fork()
        if not child:
            status = 3
            try:
                status = is_refused(sock)
            finally:
                os._exit(status)
        ours = is_refused(sock)
        _, status = os.waitpid(child, 0)
        theirs = os.waitstatus_to_exitcode(status)
    return "" if {ours, theirs} in ({0, 1}, {1}) else f"{ours} and {theirs}"


SITUATIONS: dict[str, Callable[[], str]] = {
    "select-and-getpeername": lambda: beside(select_and_name),
    "select-and-peek": lambda: beside(select_and_peek),
    "repr": lambda: beside(repr),
    "getsockname": lambda: beside(name_ourselves),
    "SO_ERROR": lambda: beside(so_error),
    "two-threads": two_threads_ask,
    "dup": lambda: beside(select_and_name, lambda sock: sock.dup()),
    "fork-parent-first": lambda: fork(at_once=False),
    "fork-at-once": lambda: fork(at_once=True),
    "refused-fork": refused_fork,
}


def main() -> None:
    """Play."""
    if sys.argv[1] == "plain":
        # Outside `vsock run` these would be sockets of this machine's own kernel: then there are none.
        raise_guard()
    listener = make()
    listener.bind((0xFFFFFFFF, PORT))
    listener.listen(8)
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    count = int(sys.argv[3])
    for number in range(count):
        if fault := SITUATIONS[sys.argv[2]]():
            print(f"play {number}: {fault}", flush=True)
    print(f"{count} played", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

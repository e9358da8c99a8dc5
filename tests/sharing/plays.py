"""One socket that two callers use while it connects: both must get the right result, and no byte is lost (A1).

    plays.py api|plain SITUATION COUNT

`api` uses `vsock.socket`, `plain` Python's own AF_VSOCK under `vsock run`. It prints a line for each failed run, and
the number of runs. The server, in this process, sends 128 bytes to each client and closes.
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
    """A new `vsock.socket`."""
    return vsock.socket()


def make_plain() -> Any:
    """A new AF_VSOCK socket of Python."""
    return socket.socket(40, socket.SOCK_STREAM)


make = make_api if sys.argv[1] == "api" else make_plain


def serve(listener: Any) -> None:
    """Send the pattern to each client."""
    while True:
        connection, _ = listener.accept()
        connection.sendall(PATTERN)
        connection.close()


def rest(sock: Any) -> bytes:
    """All data up to the end."""
    return b"".join(iter(lambda: sock.recv(1024), b""))


def whole(sock: Any) -> bytes:
    """Exactly as many bytes as the server sends. If a child has a copy of the server's end, there is no end of the data."""
    got = b""
    while len(got) < len(PATTERN) and (piece := sock.recv(1024)):
        got += piece
    return got


def in_thread(look: Look, sock: Any) -> tuple[threading.Thread, list[object]]:
    """Call `look` in another thread until it succeeds; errors that mean "not yet" are ignored."""
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
    """A blocking connect, and another thread that calls `look`."""
    with make() as sock:
        thread, faults = in_thread(look, looked_at(sock))
        sock.connect((1, PORT))
        thread.join(DEADLINE)
        got = rest(sock)
    return "" if got == PATTERN and not faults else f"{len(got)} bytes, {faults}"


def writable(sock: Any) -> None:
    """Wait until the socket is writable, as programs wait for a connect."""
    if not select.select([], [sock], [], DEADLINE)[1]:
        raise TimeoutError


def select_and_name(sock: Any) -> None:
    """The calls of CPython's TCPCloserTest."""
    select.select([sock], [], [], DEADLINE)
    sock.getpeername()


def select_and_peek(sock: Any) -> None:
    """Peek at the first byte."""
    select.select([sock], [], [], DEADLINE)
    assert sock.recv(1, socket.MSG_PEEK) == PATTERN[:1]


def so_error(sock: Any) -> None:
    """Read SO_ERROR until getpeername succeeds."""
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    sock.getpeername()


def name_ourselves(sock: Any) -> None:
    """Call getsockname until there is a connection."""
    sock.getsockname()
    sock.getpeername()


def without_waiting(sock: Any) -> None:
    """Begin a non-blocking connect."""
    sock.setblocking(False)
    assert sock.connect_ex((1, PORT)) in (0, errno.EINPROGRESS)


def two_threads_ask() -> str:
    """A non-blocking connect, and two threads that wait for it and read SO_ERROR at the same time."""
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
    """A non-blocking connect, then a fork; the parent reads SO_ERROR first, or both at the same time. The child reads the data."""
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
    """2 if this socket is connected, 1 if it returned the error, 0 if the other process got the error."""
    writable(sock)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        sock.getpeername()
    except OSError as missing:
        if missing.errno == errno.ENOTCONN:
            return int(error == errno.ECONNRESET)
    return 2


def refused_fork() -> str:
    """A non-blocking connect to a port without a listener, and a fork; both read SO_ERROR, and at least one gets the error."""
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
    """Run the situation of the arguments."""
    if sys.argv[1] == "plain":
        # Outside `vsock run` these would be sockets of this machine's own kernel, so none is made.
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

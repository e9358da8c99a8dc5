"""Attacks by ordinary programs of a Linux guest, over its own kernel's AF_VSOCK.

`attackers.in_guest` sends this file into a booted guest and runs it there: `NAME CID`, with the CID of the accomplice
(`vsock-load guest`), whose ports are those of `Service` in `src/stage.rs`. It prints a line when the attack has begun,
goes on until its standard input ends, and prints how many steps it took. It needs nothing but Python. Here it does
nothing: `in_guest` adds the call of `main`, so that nobody attacks the kernel of the machine by starting the file.
"""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

HOST = 2
NOBODY = 7777
"""A port of the host at which nothing listens."""

DISCARD, ECHO, GREET = 9001, 9003, 9004
THREADS = 4
MANY = 64
HOARD = 500


def _connected(address: tuple[int, int]) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.settimeout(5)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_close(cid: int) -> Iterator[None]:
    """Connections that are closed at once."""
    while True:
        with suppress(OSError), _connected((cid, DISCARD)):
            yield


def connect_unread(cid: int) -> Iterator[None]:
    """The same, closed with a greeting unread."""
    while True:
        with suppress(OSError), _connected((cid, GREET)):
            yield


def connect_refused(_: int) -> Iterator[None]:
    """Connects that the host refuses."""
    while True:
        with suppress(OSError), _connected((HOST, NOBODY)):
            raise AssertionError("somebody listens")
        yield


def single_bytes(cid: int) -> Iterator[None]:
    """One byte a call, on one connection."""
    with _connected((cid, DISCARD)) as sock:
        while True:
            sock.sendall(b"x")
            yield


def bulk(cid: int) -> Iterator[None]:
    """As much as the guest can send."""
    data = bytes(256 * 1024)
    with _connected((cid, DISCARD)) as sock:
        while True:
            sock.sendall(data)
            yield


def echo_unread(cid: int) -> Iterator[None]:
    """Connections to an echo that is sent to as long as it takes data, and never read."""
    socks = [_connected((cid, ECHO)) for _ in range(MANY)]
    data = bytes(64 * 1024)
    for sock in socks:
        sock.settimeout(0.01)
    while True:
        for sock in socks:
            with suppress(TimeoutError):
                sock.send(data)
            yield


def hoard(cid: int) -> Iterator[None]:
    """Connections that are kept, full of bytes that nobody reads."""
    data = bytes(64 * 1024)
    socks: list[socket.socket] = []
    while True:
        if len(socks) < HOARD:
            with suppress(OSError):
                socks.append(_connected((cid, ECHO)))
                socks[-1].settimeout(0.01)
        if socks:
            with suppress(TimeoutError):
                socks[-1].sendall(data)
        yield


ATTACKS: dict[str, Callable[[int], Iterator[None]]] = {
    "connect-close": connect_close,
    "connect-unread": connect_unread,
    "connect-refused": connect_refused,
    "single-bytes": single_bytes,
    "bulk": bulk,
    "echo-unread": echo_unread,
    "hoard": hoard,
}


def main() -> None:
    """Attack from several threads until the end of standard input."""
    attack, cid = ATTACKS[sys.argv[1]], int(sys.argv[2])
    steps = [0] * THREADS
    faults: list[Exception] = []
    is_over = threading.Event()
    begun = threading.Event()

    def play(number: int) -> None:
        try:
            for _ in attack(cid):
                steps[number] += 1
                begun.set()
                if is_over.is_set():
                    return
        except Exception as error:
            faults.append(error)
            begun.set()

    threads = [threading.Thread(target=play, args=(it,), daemon=True) for it in range(THREADS)]
    for thread in threads:
        thread.start()
    begun.wait()
    print("attacking", flush=True)
    sys.stdin.read()
    if not any(thread.is_alive() for thread in threads):
        sys.exit(f"the attack ended after {sum(steps)} steps: {faults[0]!r}")
    is_over.set()
    print(sum(steps), flush=True)

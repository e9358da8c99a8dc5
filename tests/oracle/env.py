"""The environment of a case: sockets, free ports, well-known addresses, and waits with deadlines.

Cases call methods of sockets as every program does. This module has what differs between the columns,
what CPython cannot do (`tests.oracle.libc`), and waits with deadlines. There is one `Env` per case;
closing it closes all of its sockets.
"""

import contextlib
import fcntl
import itertools
import json
import os
import select
import signal
import socket as _socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from tests.oracle import libc
from tests.oracle.case import NotApplicable, Version, do

ANY: Final = 0xFFFFFFFF
LOCAL: Final = 1
OWN: Final = 2
"""CID of the host, also for its own programs."""

STREAM: Final = int(_socket.SOCK_STREAM)
SEQPACKET: Final = int(_socket.SOCK_SEQPACKET)
DGRAM: Final = int(_socket.SOCK_DGRAM)
AF_VSOCK: Final = 40

BUFFER_SIZE: Final = 0
BUFFER_MIN_SIZE: Final = 1
BUFFER_MAX_SIZE: Final = 2
CONNECT_TIMEOUT: Final = 6
"""SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD: the number that 64-bit programs use."""
CONNECT_TIMEOUT_NEW: Final = 8

GET_LOCAL_CID: Final = 0x7B9
SIOCINQ: Final = 0x541B
SIOCOUTQ: Final = 0x5411

SILENT_CID: Final = 77
"""A guest that exists and never answers: its machine is not running."""
MISSING_CID: Final = 78
"""A CID without a guest."""

WAIT_SECONDS: Final = 3.0
"""Deadline in seconds for events that should happen soon."""

_BITS: Final = {
    "IN": select.POLLIN,
    "PRI": select.POLLPRI,
    "OUT": select.POLLOUT,
    "ERR": select.POLLERR,
    "HUP": select.POLLHUP,
    "RDHUP": select.POLLRDHUP,
    "NVAL": select.POLLNVAL,
}

_ports = itertools.count(20_000)


class Env(ABC):
    """The environment of one case."""

    column: str
    release: Version | None = None
    """The kernel's release, in the column of a kernel."""
    has_datagrams = True
    SILENT: Final = (SILENT_CID, 99)
    MISSING: Final = (MISSING_CID, 99)

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # Sockets

    @abstractmethod
    def make_socket(self, kind: int, proto: int) -> Any:
        """A new VSOCK socket of this column."""

    @abstractmethod
    def local_cid(self) -> int:
        """The local CID, by the call that programs of this column use."""

    @property
    def libc(self) -> Any:
        """System calls with raw arguments on a socket's descriptor, if the column has them."""
        return libc

    def socket(self, kind: int = STREAM, proto: int = 0) -> Any:
        """A new socket; it is closed after the case."""
        return self.keep(self.make_socket(kind, proto))

    def keep(self, sock: Any) -> Any:
        """Close `sock` after the case."""
        self._stack.callback(sock.close)
        return sock

    def port(self) -> int:
        """A port that no other case uses."""
        return next(_ports)

    def bound(self, kind: int = STREAM, cid: int = ANY) -> Any:
        """A socket bound to a port of its own."""
        sock = self.socket(kind)
        sock.bind((cid, self.port()))
        return sock

    def listener(self, kind: int = STREAM, backlog: int = 8) -> Any:
        """A socket that listens on a port of its own, under all CIDs."""
        sock = self.bound(kind)
        sock.listen(backlog)
        return sock

    def at(self, listener: Any, cid: int = LOCAL) -> tuple[int, int]:
        """The address to connect to `listener`."""
        return (cid, listener.getsockname()[1])

    def connected_to(self, listener: Any, kind: int = STREAM) -> Any:
        """A socket that has connected to `listener`."""
        sock = self.socket(kind)
        sock.connect(self.at(listener))
        return sock

    def accept(self, listener: Any) -> Any:
        """The next connection of `listener`."""
        return self.keep(listener.accept()[0])

    def pair(self, kind: int = STREAM) -> tuple[Any, Any]:
        """Two connected sockets: the one that connected and the one that accepted."""
        listener = self.listener(kind)
        client = self.connected_to(listener, kind)
        return client, self.accept(listener)

    def refused(self, kind: int = STREAM) -> tuple[int, int]:
        """An address without a listener."""
        return (LOCAL, self.port())

    # Options and ioctls

    def set_time(self, sock: Any, level: int, option: int, seconds: float) -> Any:
        """Set an option that is a struct timeval."""
        whole = int(seconds)
        value = struct.pack("@ll", whole, round((seconds - whole) * 1e6))
        return do(sock.setsockopt, level, option, value)

    def get_time(self, sock: Any, level: int, option: int) -> Any:
        """Seconds in an option that is a struct timeval."""
        got = do(sock.getsockopt, level, option, 16)
        if isinstance(got, str):
            return got
        whole, micro = struct.unpack("@ll", got)
        return whole + micro / 1e6

    def set_size(self, sock: Any, option: int, size: int) -> Any:
        """Set one of the buffer sizes."""
        return do(sock.setsockopt, AF_VSOCK, option, struct.pack("=Q", size))

    def get_size(self, sock: Any, option: int = BUFFER_SIZE) -> Any:
        """One of the buffer sizes."""
        got = do(sock.getsockopt, AF_VSOCK, option, 8)
        return got if isinstance(got, str) else struct.unpack("=Q", got)[0]

    def get_int(self, sock: Any, option: int, level: int = _socket.SOL_SOCKET) -> Any:
        """An option that is an int."""
        got = do(sock.getsockopt, level, option, 4)
        return got if isinstance(got, str) else struct.unpack("=i", got)[0]

    def set_int(self, sock: Any, option: int, value: int, level: int = _socket.SOL_SOCKET) -> Any:
        """Set an option that is an int."""
        return do(sock.setsockopt, level, option, struct.pack("=i", value))

    def ioctl(self, sock: Any, request: int) -> Any:
        """The number that an ioctl on the socket returns."""
        got = do(fcntl.ioctl, sock, request, bytes(4))
        return got if isinstance(got, str) else struct.unpack("=i", got)[0]

    # Waiting

    def poll(self, sock: Any, awaited: str = "") -> str:
        """The poll bits of `sock`, when all of `awaited` are set or the deadline has passed."""
        wanted = sum(_BITS[name] for name in awaited.split("|") if name)
        deadline = time.monotonic() + WAIT_SECONDS
        poll = select.poll()
        missing = wanted
        while missing and time.monotonic() < deadline:
            poll.register(sock.fileno(), missing)
            ready = dict(poll.poll(1000 * (deadline - time.monotonic()))).get(sock.fileno(), 0)
            if not ready & missing:  # poll always reports ERR and HUP: do not spin because of them
                threading.Event().wait(0.002)
            missing &= ~ready
        poll.register(sock.fileno(), sum(_BITS.values()))
        ready = dict(poll.poll(0)).get(sock.fileno(), 0)
        return "|".join(name for name, bit in _BITS.items() if ready & bit) or "nothing"

    def arrived(self, sock: Any, length: int) -> bool:
        """Wait until this many bytes, or a message of this size, can be read from `sock`."""

        def is_there() -> bool:
            got = do(sock.recv, length, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
            return isinstance(got, bytes) and len(got) >= length

        return self.until(is_there)

    def until(self, is_so: Callable[[], bool]) -> bool:
        """Wait for a condition for which there is no poll event; returns whether it became true in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                return False
            threading.Event().wait(0.002)
        return True

    def fill(self, sock: Any, piece: int = 4096, limit: int = 32 << 20) -> int:
        """Send without blocking until the socket stays full; returns the number of bytes."""
        sent = refusals = 0
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLOUT)
        while sent < limit and refusals < 2:
            went = do(sock.send, bytes(piece), _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            if isinstance(went, int):
                sent, refusals = sent + went, 0
            else:
                # Without a poll event there may still be room.
                refusals += 1
                poll.poll(100)
        return sent

    def receive(self, sock: Any, length: int) -> Any:
        """Exactly this many bytes of a stream, or fewer if it ends, or an errno if it fails at once."""
        got = b""
        while len(got) < length:
            piece = do(sock.recv, length - len(got))
            if isinstance(piece, str):
                return got or piece
            if not piece:
                break
            got += piece
        return got

    def background(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Run `do(call)` in a thread; returns a function that waits for its result."""
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(do(call)), daemon=True)
        thread.start()

        def result() -> Any:
            thread.join(WAIT_SECONDS)
            return results[0] if results else "still waits"

        result.thread = thread  # type: ignore[attr-defined]
        return result

    def waits(self, result: Callable[[], Any]) -> bool:
        """Whether a call in the background is blocked in its system call."""
        thread: threading.Thread = result.thread  # type: ignore[attr-defined]
        try:
            with open(f"/proc/self/task/{thread.native_id}/stat") as stat:  # noqa: PTH123
                return stat.read().rpartition(")")[2].split()[0] == "S"
        except FileNotFoundError:
            return True  # it has ended already

    @contextlib.contextmanager
    def signals(self, number: int) -> Iterator[list[int]]:
        """Collect signals instead of their default actions."""
        caught: list[int] = []
        before = signal.signal(number, lambda number, _: caught.append(number))
        try:
            yield caught
        finally:
            signal.signal(number, before)

    def interrupted(self, call: Callable[[], Any]) -> Any:
        """The result of `do` for a call that a signal interrupts."""
        with self.signals(signal.SIGUSR1):
            ours = threading.main_thread().ident
            assert ours is not None
            # Repeated, because the first signal may come before the call blocks.
            done = threading.Event()

            def send() -> None:
                while not done.wait(0.05):
                    signal.pthread_kill(ours, signal.SIGUSR1)

            sender = threading.Thread(target=send, daemon=True)
            sender.start()
            try:
                return do(call)
            finally:
                done.set()
                sender.join()

    def unprivileged(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of `do` for a call in a child process that may not bind privileged ports."""
        if os.geteuid() != 0:
            raise NotApplicable("needs root, to have a privilege that can be dropped")

        def without_privilege() -> Any:
            libc.drop_net_bind_service()
            return call(*arguments)

        return self.in_child(without_privilege)

    def in_child(self, call: Callable[[], Any]) -> Any:
        """The result of `do` for a call in a forked child, which then exits; it is passed as JSON."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, json.dumps(do(call)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as answer:  # noqa: PTH123 - a descriptor, not a path
            said = answer.read()
        os.waitpid(pid, 0)
        return json.loads(said) if said else "the child died"


class PlainSocket(_socket.socket):
    """CPython's socket for AF_VSOCK, with options of any type."""

    def setsockopt(self, level: int, option: int, value: Any, n: int | None = None) -> None:
        """As in the base class, but bytes are passed unchanged."""
        if isinstance(value, int):
            super().setsockopt(level, option, value)
        else:
            libc.set_option(self, level, option, value, len(value) if n is None else n)

    def getsockopt(self, level: int, option: int, room: int = 0) -> Any:
        """As in the base class, but any length can be given."""
        if not room:
            return super().getsockopt(level, option)
        return libc.get_option(self, level, option, room)

    def accept(self) -> tuple["PlainSocket", Any]:
        """As in the base class, but the new socket is a PlainSocket too."""
        fd, address = self._accept()  # type: ignore[attr-defined]
        return PlainSocket(self.family, self.type, self.proto, fileno=fd), address


class PlainEnv(Env):
    """Programs that use the kernel's socket calls: in a guest, or under ``vsock run``."""

    def __init__(self, column: str, release: Version | None) -> None:
        super().__init__()
        self.column = column
        self.release = release
        self.has_datagrams = False

    def make_socket(self, kind: int, proto: int) -> Any:
        """A socket as every program makes it."""
        return PlainSocket(AF_VSOCK, kind, proto)

    def local_cid(self) -> int:
        """The ioctl on /dev/vsock."""
        device = os.open("/dev/vsock", os.O_RDONLY)
        try:
            got: int = struct.unpack("=I", fcntl.ioctl(device, GET_LOCAL_CID, bytes(4)))[0]
            return got
        finally:
            os.close(device)

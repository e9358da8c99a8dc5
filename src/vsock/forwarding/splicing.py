"""Copies between two connected stream sockets with splice(2): the kernel moves the bytes, and none passes through Python.

Each direction ends by itself: the end of one side's data is passed on by shutdown(2), and the other direction goes on. A
side that is lost is not passed on as an end: both are reset.

A side is lost when its socket has an error, which EPOLLERR tells, whether or not it is read: a TCP connection that was
reset, or whose machine has vanished. EPOLLHUP and EPOLLRDHUP are no loss: they tell of ends, behind which there may be data.
"""

import asyncio
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Final, Self

__all__ = ["Carried", "carry", "join", "reset"]

_PIECE: Final = 1 << 20
_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_TURN: Final = 16
"""Pieces that are moved before other connections have their turn."""
_LARGE: Final = 1 << 15
"""Bytes of a piece behind which there may be more already; behind a smaller one the loop waits at once."""
_STALLED_SECONDS: Final = 60.0
"""For which a side may take nothing of what a lost one has sent before it was lost.

Not less: a receiver of TCP tells of room only when a sixteenth of its buffer is free, which a slow one takes long for.
"""
_TCP: Final = (socket.AF_INET, socket.AF_INET6)
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close(2) sends RST."""


class Carried:
    """Bytes of a connection: `there` went from the side that connected, `back` to it."""

    __slots__ = ("back", "there")

    def __init__(self) -> None:
        self.there = 0
        self.back = 0

    @property
    def total(self) -> int:
        """Of both directions."""
        return self.there + self.back


async def join(caller: socket.socket, callee: socket.socket, carried: Carried) -> None:
    """Copy in both directions until both have ended, and close both sockets, which are non-blocking streams.

    Raises:
        OSError: a side was lost; both were reset.
    """

    def there(count: int) -> None:
        carried.there += count

    def back(count: int) -> None:
        carried.back += count

    try:
        with (
            _Pump(caller, callee, there) as one,
            _Pump(callee, caller, back) as other,
            _Losses(one, other),
        ):
            await asyncio.gather(one.ended, other.ended)
    except BaseException:
        for sock in (caller, callee):
            reset(sock)
        raise
    finally:
        caller.close()
        callee.close()


async def carry(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
    """Copy one direction to its end, and pass that on; `count` is called with the bytes of each piece.

    Raises:
        OSError: a side was lost.
    """
    with _Pump(source, sink, count) as pump:
        await pump.ended


class _Pump:
    """One direction, in callbacks of the event loop: to wake a task for each piece would take longer than to move it."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, count: Callable[[int], None]
    ) -> None:
        self.source = source
        self._sink = sink
        self._count = count
        self._left = 0
        self._moved = 0
        self._is_full = False
        self._back: _Pump | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(self.source, self._turn)
        return self

    def __exit__(self, *_: object) -> None:
        self._wait_for_nothing()
        if self._next_look:
            self._next_look.cancel()
        self.ended.cancel()
        os.close(self._reader)
        os.close(self._writer)

    def lose(self, back: "_Pump") -> None:
        """The source is lost. What it has sent is passed on still, as long as the sink takes it; then `back` ends too."""
        if self._back:
            return
        self._back = back
        self._bound_stall()
        self.ended.add_done_callback(lambda _: self._end_if_taken(back))

    def _bound_stall(self) -> None:
        so_far = self._moved, _not_taken(self._sink)
        self._next_look = self._loop.call_later(_STALLED_SECONDS, self._end_if_stalled, so_far)

    def _end_if_stalled(self, before: tuple[int, int]) -> None:
        # The loop tells of room only when much of the sink's buffer is free.
        assert self._back
        if before == (self._moved, _not_taken(self._sink)):
            self._fail(self._back)
        else:
            self._bound_stall()
            if self.ended.done():
                self._end_if_taken(self._back)

    def _end_if_taken(self, back: "_Pump") -> None:
        """Behind the end of what a lost source has sent; a reset of TCP would drop what is not taken yet."""
        if not (back.ended.done() or (self._sink.family in _TCP and _not_taken(self._sink))):
            self._fail(back)

    def _fail(self, back: "_Pump") -> None:
        """End both with the error of the source."""
        # The library's own SO_ERROR is that of connect.
        code = socket.socket.getsockopt(self.source, socket.SOL_SOCKET, socket.SO_ERROR)
        code = code or errno.ECONNRESET
        for pump in (self, back):
            if not pump.ended.done():
                pump.ended.set_exception(OSError(code, os.strerror(code)))

    def _wait_for_nothing(self) -> None:
        if self._is_full:
            self._loop.remove_writer(self._sink)
        else:
            self._loop.remove_reader(self.source)

    def _turn(self) -> None:
        try:
            for number in range(_TURN):
                if self.ended.done() or not self._moves_more(is_first=number == 0):
                    return
        except Exception as error:  # passed on to who awaits the end
            self._wait_for_nothing()
            self._is_full = False
            if not self.ended.done():
                self.ended.set_exception(error)

    def _moves_more(self, *, is_first: bool) -> bool:
        """Move a piece; returns whether there may be another one already."""
        if not self._left:
            try:
                self._left = self._take(is_first)
            except BlockingIOError:
                return False
            if not self._left:
                self._sink.shutdown(socket.SHUT_WR)
                self._loop.remove_reader(self.source)
                self.ended.set_result(None)
                return False
            self._count(self._left)
        size = self._left
        try:
            while self._left:
                moved = os.splice(self._reader, self._sink.fileno(), self._left, flags=_FLAGS)
                self._left -= moved
                self._moved += moved
        except BlockingIOError:
            self._set_full(True)
            return False
        self._set_full(False)
        return size >= _LARGE

    def _take(self, is_first: bool) -> int:
        """Take data of the source into the pipe; returns how much, 0 at the end."""
        try:
            if count := os.splice(self.source.fileno(), self._writer, _PIECE, flags=_FLAGS):
                return count
        except BlockingIOError:
            if not is_first:
                raise
        # splice stops before an urgent byte of TCP, of which the loop would tell for ever; recv leaves it out. At the end
        # a socket of a switch tells only by recv that its connection was lost.
        data = self.source.recv(_LARGE)
        return os.write(self._writer, data) if data else 0

    def _set_full(self, is_full: bool) -> None:
        """Wait for room in the sink, or for data."""
        if is_full == self._is_full:
            return
        self._wait_for_nothing()
        self._is_full = is_full
        if is_full:
            self._loop.add_writer(self._sink, self._turn)
        else:
            self._loop.add_reader(self.source, self._turn)


class _Losses:
    """Tells two pumps of the loss of a side that neither reads, because its sink is full or its data has ended."""

    def __init__(self, one: _Pump, other: _Pump) -> None:
        self._pumps = {one.source.fileno(): (one, other), other.source.fileno(): (other, one)}
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        self._poller = select.epoll()
        for descriptor in self._pumps:
            # Errors are always told; data is not, and an error is told again only with other news.
            self._poller.register(descriptor, select.EPOLLET)
        self._loop.add_reader(self._poller.fileno(), self._look)

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._poller.fileno())
        self._poller.close()

    def _look(self) -> None:
        for descriptor, events in self._poller.poll(0):
            if events & select.EPOLLERR:
                pump, other = self._pumps[descriptor]
                pump.lose(other)


def _not_taken(sock: socket.socket) -> int:
    """What the kernel still keeps of what was sent, until its peer takes it; 0 for sockets that cannot say."""
    size = bytearray(4)
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, size)
    except OSError:  # vsock, before Linux 6.12
        return 0
    return int.from_bytes(size, sys.byteorder)


def reset(sock: socket.socket) -> None:
    """Make the close of a socket one that its peer cannot take for an end."""
    if sock.family in _TCP:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)

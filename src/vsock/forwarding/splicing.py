"""Copies between two connected stream sockets with splice(2): the kernel moves the bytes, and none passes through Python.

Each direction ends by itself: the end of one side's data is passed on by shutdown(2), and the other direction goes on. A
side that is lost is not passed on as an end: both are reset.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

__all__ = ["Carried", "carry", "join", "reset"]

_PIECE: Final = 1 << 20
_FLAGS: Final = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
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
        async with asyncio.TaskGroup() as group:
            group.create_task(carry(caller, callee, there))
            group.create_task(carry(callee, caller, back))
    except BaseException as error:
        for sock in (caller, callee):
            reset(sock)
        if isinstance(error, BaseExceptionGroup):
            raise error.exceptions[0] from None
        raise
    finally:
        caller.close()
        callee.close()


async def carry(source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
    """Copy one direction to its end, and pass that on; `count` is called with the bytes of each piece.

    Raises:
        OSError: a side was lost.
    """
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                left = os.splice(source.fileno(), writer, _PIECE, flags=_FLAGS)
            except BlockingIOError:
                await _ready(source, is_reading=True)
                continue
            if left == 0:
                # A socket of a switch tells here, and only by recv, that its connection was lost.
                if source.recv(1):
                    raise ConnectionResetError("data behind the end")
                sink.shutdown(socket.SHUT_WR)
                return
            count(left)
            while left:
                try:
                    left -= os.splice(reader, sink.fileno(), left, flags=_FLAGS)
                except BlockingIOError:
                    await _ready(sink, is_reading=False)
    finally:
        os.close(reader)
        os.close(writer)


async def _ready(sock: socket.socket, *, is_reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_reader, loop.remove_reader)
        if is_reading
        else (loop.add_writer, loop.remove_writer)
    )
    add(sock, wake)
    try:
        await ready
    finally:
        remove(sock)


def reset(sock: socket.socket) -> None:
    """Make the close of a socket one that its peer cannot take for an end."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)

"""JSON messages, one per line, over a connected socket: for QMP and for the agent in the guest.

Lines that are no JSON objects are ignored: a serial port may carry output of a booting kernel. With a
window, at most that many bytes are in flight unacknowledged; the other side sends `{"ack": n}` as it
reads them (guests/agent.py has the reason).
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]

_LONGEST_LINE = 1 << 20


class JsonLines:
    """One connection; the event loop calls `on_message` with each message.

    `on_end` is called once, when the other side has closed.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
        window: int | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_message = on_message
        self._on_end = on_end
        self._window = window
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()
        self._unacknowledged = 0
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
        *,
        window: int | None = None,
    ) -> "JsonLines":
        """Make a connection of the connected socket `sock`, and own it."""
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_LONGEST_LINE)
        return cls(reader, writer, on_message, on_end, window)

    async def send(self, message: Message) -> None:
        """Send one message; waits while the window is full."""
        data = json.dumps(message).encode() + b"\n"
        async with self._turn:  # pieces of two messages must not be mixed
            while data:
                size = await self._piece(len(data))
                self._writer.write(data[:size])
                await self._writer.drain()
                data = data[size:]

    async def _piece(self, wanted: int) -> int:
        if self._window is None:
            return wanted
        while self._unacknowledged >= self._window:
            self._room.clear()
            await self._room.wait()
        size = min(wanted, self._window - self._unacknowledged)
        self._unacknowledged += size
        return size

    def forget_unacknowledged(self) -> None:
        """Reset the window: the other side has restarted and will not acknowledge earlier bytes."""
        self._unacknowledged = 0
        self._room.set()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                message = _parsed(line)
                if message is None:
                    continue
                if "ack" in message:
                    self._unacknowledged = max(0, self._unacknowledged - int(message["ack"]))
                    self._room.set()
                else:
                    self._on_message(message)
        except (OSError, ValueError):
            pass  # reset, or a line without end: the connection cannot be used any more
        finally:
            self._on_end()

    async def close(self) -> None:
        """End the connection."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _parsed(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None

"""JSON lines over a socket: noise, the window, the end."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from vsock.testing._lines import JsonLines

DEADLINE = 5


class Peer:
    """The end under test, and the other end as a plain socket."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.lines: JsonLines

    async def open(self, window: int | None) -> None:
        """Let the end under test take its socket over."""
        put = self.messages.put_nowait
        self.lines = await JsonLines.over(self.ours, put, self.ended.set, window=window)

    async def says(self, data: bytes) -> None:
        """The other end sends."""
        await asyncio.get_running_loop().sock_sendall(self.theirs, data)

    async def hears(self, size: int) -> bytes:
        """The other end receives exactly this many bytes."""
        data = b""
        while len(data) < size:
            data += await asyncio.get_running_loop().sock_recv(self.theirs, size - len(data))
        return data


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A connection without window."""
    made = Peer()
    await made.open(None)
    async with asyncio.timeout(DEADLINE):
        yield made
    await made.lines.close()
    made.theirs.close()


@pytest.fixture
async def windowed() -> AsyncIterator[Peer]:
    """A connection with a window of 10 bytes."""
    made = Peer()
    await made.open(10)
    async with asyncio.timeout(DEADLINE):
        yield made
    await made.lines.close()
    made.theirs.close()


async def test_noise_between_messages_is_passed_over(peer: Peer) -> None:
    """A booting kernel may write anything to a serial port."""
    await peer.says(b'\x00\xff[ 0.1] boot\n\n17\n"text"\n{"id": 1}\n')
    assert await peer.messages.get() == {"id": 1}
    assert peer.messages.empty()


async def test_message_in_pieces_is_put_together(peer: Peer) -> None:
    """A stream has no message boundaries."""
    for piece in (b'{"id"', b": 2", b"}\n"):
        await peer.says(piece)
    assert await peer.messages.get() == {"id": 2}


async def test_other_side_closing_is_told(peer: Peer) -> None:
    """A caller that waits for an answer gets an error."""
    peer.theirs.shutdown(socket.SHUT_WR)
    await peer.ended.wait()


async def test_window_holds_back_what_is_not_acknowledged(windowed: Peer) -> None:
    """Only the window's bytes are in flight, and an interrupted message continues where it stopped."""
    message = {"do": "x" * 30}
    sending = asyncio.create_task(windowed.lines.send(message))
    sent = await windowed.hears(10)
    with pytest.raises(BlockingIOError):
        windowed.theirs.recv(1)
    size = len(json.dumps(message)) + 1
    while len(sent) < size:
        await windowed.says(b'{"ack": 10}\n')
        sent += await windowed.hears(min(10, size - len(sent)))
    await sending
    assert json.loads(sent) == message
    assert windowed.messages.empty(), "acknowledgements are no messages"


async def test_window_is_open_again_after_a_restart_of_the_other_side(windowed: Peer) -> None:
    """A guest that reboots never acknowledges earlier bytes."""
    sending = asyncio.create_task(windowed.lines.send({"do": "123456789"}))
    await windowed.hears(10)
    windowed.lines.forget_unacknowledged()
    await windowed.hears(8)
    await sending

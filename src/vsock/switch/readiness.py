"""What guests say of themselves: that they are ready, and a line of text.

Guests send the messages of sd_notify(3) to a port of the host, one in each connection. systemd does so where its
credential `vmm.notify_socket` names that port; it ends its half of the connection, and waits until we end ours.
Who speaks is known by the CID, which the data plane has checked. A guest can say what it likes of itself, and of
nobody else. How much it may say, and for how long, is limited for each guest alone.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from vsock._system.text import printable
from vsock.address import Address
from vsock.aio.server import Server
from vsock.control.model import FIRST_GUEST_CID, LONGEST_TEXT, NOTIFY_PORT
from vsock.sockets import create_server
from vsock.transports import SwitchTransport

__all__ = ["Message", "NotifyServer", "Readiness", "Said"]

_log: Final = logging.getLogger("vsock.switch")

MOST_BYTES: Final = 4096
"""Bytes of a message: what systemd itself accepts from its services."""

PATIENCE: Final = 10.0
"""Seconds that a message may take, from the connection to its end: an emulated guest needs parts of one."""

MOST_CONNECTIONS: Final = 16
"""Connections of a guest at a time; systemd has one."""

_BURST: Final = 256
"""Messages of a guest at once; a boot of systemd has about twenty."""

_PER_SECOND: Final = 32.0
"""Messages of a guest that go on being heard."""

_LINES_PER_SECOND: Final = 0.1
"""Lines in the log about a guest that says too much."""

_WAITING: Final = 1024
"""Connections of all guests that may wait until we accept them. So long a queue has places for those who do not flood it
(crates/node/src/programs/accept_queue.rs)."""

_IN_A_ROW: Final = 8
"""Connections that we accept before requests of the control API have a turn."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `ready` after READY=1, not after STOPPING=1, and None if it has neither; `status` if it has one."""

    ready: bool | None = None
    status: str | None = None

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a message; what is not understood is passed over, as sd_notify(3) demands. Text becomes printable."""
        ready, status = None, None
        for line in data.split(b"\n"):
            if line in (b"READY=1", b"STOPPING=1"):
                ready = line == b"READY=1"
            elif line.startswith(b"STATUS="):
                text = line.removeprefix(b"STATUS=").decode(errors="replace")
                status = printable(text, LONGEST_TEXT)
        return cls(ready, status)


@dataclass(frozen=True, slots=True)
class Said:
    """What a guest has said since its driver came up for the `driver_starts`th time; `since` is a monotonic time."""

    driver_starts: int
    ready: bool = False
    status: str = ""
    since: float | None = None

    def and_then(self, message: Message) -> "Said":
        """What it has said with one more message."""
        ready = self.ready if message.ready is None else message.ready
        since = (self.since or time.monotonic()) if ready else None
        status = self.status if message.status is None else message.status
        return Said(self.driver_starts, ready, status, since)


class Readiness:
    """What each guest has said, by name. Other threads may ask while one hears."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}

    def hear(self, guest: str, driver_starts: int, message: Message) -> None:
        """Take a message of a guest; what it said before it booted is over."""
        before = self._said.get(guest)
        if before is None or before.driver_starts != driver_starts:
            before = Said(driver_starts)
        self._said[guest] = before.and_then(message)

    def of(self, guest: str, driver_starts: int) -> Said | None:
        """What a guest has said since its driver came up; None if nothing."""
        said = self._said.get(guest)
        return said if said and said.driver_starts == driver_starts else None

    def forget(self, guest: str) -> None:
        """A guest is removed: another one may get its name."""
        self._said.pop(guest, None)


class NotifyServer:
    """Hears the guests of a switch, in the running loop, as an async context manager.

    Args:
        transport: leads to the switch.
        hear: called with the CID of a guest and its message.
    """

    def __init__(self, transport: SwitchTransport, hear: Callable[[int, Message], None]) -> None:
        self._transport = transport
        self._hear = hear
        self._server: Server | None = None
        self._speakers: defaultdict[int, _Speaker] = defaultdict(_Speaker)

    async def __aenter__(self) -> Self:
        try:
            listener = create_server(NOTIFY_PORT, backlog=_WAITING, transport=self._transport)
        except OSError as error:  # a program was faster: the switch is of use without this
            _log.warning("no guest can say that it is ready: %s", error)
            return self
        listener.setblocking(False)
        self._server = Server(
            listener, self._serve, backlog=_IN_A_ROW, limit=MOST_BYTES, admit=self._admit
        )
        await self._server.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        server, self._server = self._server, None
        if server:
            server.close()
            server.abort_clients()

    def _admit(self, peer: Address) -> bool:
        """Whether to hear who has connected: a guest, within its limits."""
        return peer.cid >= FIRST_GUEST_CID and self._speakers[peer.cid].may_speak(peer.cid)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cid: int = writer.get_extra_info("peername")[0]
        speaker = self._speakers[cid]
        speaker.connections += 1
        try:
            async with asyncio.timeout(PATIENCE):
                data = await _read(reader)
        except TimeoutError:
            data = None
        finally:
            speaker.connections -= 1
        if data is None or self._server is None:
            writer.transport.abort()
            return
        self._hear(cid, Message.read(data))
        writer.close()


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """All that comes until the end of a connection; None if that is more than a message has."""
    data = b""
    try:
        while piece := await reader.read(MOST_BYTES):
            data += piece
            if len(data) > MOST_BYTES:
                return None
    except ConnectionResetError:
        pass  # an older systemd closes at once: what it has sent is here
    return data


@dataclass(slots=True)
class _Bucket:
    """Tokens: each act takes one, and they come back with time."""

    most: int
    per_second: float
    tokens: float = field(init=False)
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.tokens = self.most

    def take(self) -> bool:
        """Take one if there is one."""
        now = time.monotonic()
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class _Speaker:
    """How much a guest may say."""

    connections: int = 0
    messages: _Bucket = field(default_factory=lambda: _Bucket(_BURST, _PER_SECOND))
    lines: _Bucket = field(default_factory=lambda: _Bucket(1, _LINES_PER_SECOND))

    def may_speak(self, cid: int) -> bool:
        """Whether one more message is heard; that it is not is said in the log, from time to time."""
        if self.connections < MOST_CONNECTIONS and self.messages.take():
            return True
        if self.lines.take():
            _log.warning("notify: cid=%d says too much, and is not heard for a while", cid)
        return False

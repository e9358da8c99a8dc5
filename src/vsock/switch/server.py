"""Serves the control API on a Unix socket, with uvicorn.

`SO_PEERCRED` identifies the client's process. The socket's mode (0600, in a directory of mode 0700) decides
who may connect. All code that overrides uvicorn's internals is here; pyproject.toml pins its minor version.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from vsock.switch.api import PEER, SWITCH, app
from vsock.switch.claims import peer_of

if TYPE_CHECKING:
    from vsock.switch.switch import Switch

__all__ = ["ControlServer"]

MOST_CONNECTIONS: Final = 64
"""Clients at a time. One more takes the place of the oldest that has no request under way."""

PATIENCE: Final = 10.0
"""Seconds that a client may take to send a request."""

_LAST_SECONDS: Final = 1.0
"""How long the answers that are being made, and clients that read them, are waited for at the end."""

_ACCEPTING_TURNS: Final = 5
"""Turns of the loop after which a connection that asyncio has accepted is one of uvicorn's; three are enough in 3.13."""

_BACKLOG: Final = 16
"""Connections that asyncio accepts before it does anything else, and that wait meanwhile."""

_SO_PASSRIGHTS: Final = 83
"""Of Linux; the module socket does not have it."""

_Scope = MutableMapping[str, Any]
_Asgi = Callable[[_Scope, Any, Any], Awaitable[None]]


class ControlServer:
    """Serves the API of a switch at `path`, in the running loop, as an async context manager."""

    def __init__(self, switch: "Switch", path: Path) -> None:
        self._path = path
        config = uvicorn.Config(
            _asking(switch),
            http=_PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            date_header=False,  # its clock wakes the process once a second
            backlog=_BACKLOG,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before it has a name, which gets this mode
            _refuse_descriptors(listener)
            listener.bind(str(self._path))
        except OSError:
            listener.close()
            raise
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        started = asyncio.create_task(self._server.is_up.wait())
        await asyncio.wait({self._serving, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._serving.done():
            await self._serving
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.is_over.set()
        if self._serving:
            await self._serving
        self._path.unlink(missing_ok=True)


def _asking(switch: "Switch") -> _Asgi:
    async def app_of_switch(scope: _Scope, receive: Any, send: Any) -> None:
        scope[SWITCH] = switch
        await app(scope, receive, send)

    return app_of_switch


def _refuse_descriptors(listener: socket.socket) -> None:
    """Clients cannot send descriptors, the close of which may hang: connections inherit this.

    Before Linux 6.16 they can.
    """
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise


class _Server(uvicorn.Server):
    """uvicorn's server as a guest in somebody's program: signals are not its business, and it wakes for requests alone.

    uvicorn's own looks ten times a second whether it is to end, and takes a tenth of a second or two to do so.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()
        self.is_over = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)  # it makes the headers of all answers
        await self.is_over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for _ in range(_ACCEPTING_TURNS):
            await asyncio.sleep(0)
        clients = [it for it in self.server_state.connections if isinstance(it, _PeerProtocol)]
        for client in clients:
            client.shutdown()
            if client.owes_request():  # no answer is being made
                client.transport.close()
        if clients:
            await asyncio.wait([it.is_lost for it in clients], timeout=_LAST_SECONDS)
        for client in clients:
            client.transport.abort()
        for task in self.server_state.tasks:
            task.cancel()


class _PeerProtocol(H11Protocol):
    """HTTP/1.1 that tells the application which process is at the other end, and waits for none without end."""

    is_lost: asyncio.Future[None]
    _deadline: asyncio.TimerHandle | None = None
    _since: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own annotation
        super().connection_made(transport)
        self.is_lost = self.loop.create_future()
        self._since = self.loop.time()
        self._watch()
        self._make_room()
        peer = peer_of(transport.get_extra_info("socket"))
        app: _Asgi = self.app

        async def app_with_peer(scope: _Scope, receive: Any, send: Any) -> None:
            scope[PEER] = peer
            await app(scope, receive, send)

        self.app = app_with_peer

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)
        self.is_lost.set_result(None)

    def owes_request(self) -> bool:
        """Whether the client has sent no request that has no answer yet, or not all of it."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.more_body or cycle.response_complete

    def _watch(self) -> None:
        if not self.owes_request():
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None
        elif not self._deadline:
            self._deadline = self.loop.call_later(PATIENCE, self.transport.abort)

    def _make_room(self) -> None:
        clients = [it for it in self.connections if isinstance(it, _PeerProtocol)]
        clients = [it for it in clients if not it.transport.is_closing()]
        if len(clients) > MOST_CONNECTIONS:
            waiting = (it for it in clients if it.owes_request())
            min(waiting, key=lambda it: it._since).transport.abort()

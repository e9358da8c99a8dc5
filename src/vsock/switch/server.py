"""The control API: HTTP with JSON over a Unix socket, described by `/openapi.json`.

Handlers only translate: a request becomes a call of the switch, its answer a record, its error a
status with one line of reason. Who asks is known from the socket (`SO_PEERCRED`) and goes into
the log; who may ask is the socket's mode (0600, in a directory of mode 0700).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Protocol, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from vsock.errors import NoSuchGuest, TransportError, UsageError
from vsock.switch.claims import peer_of
from vsock.switch.model import FIRST_GUEST_CID, LAST_GUEST_CID
from vsock.switch.policy import Verdict
from vsock.switch.records import (
    DatagramRecord,
    FlowRecord,
    GuestRecord,
    ListenerRecord,
    SwitchRecord,
)

__all__ = ["ControlServer", "Controlled", "make_app"]

_log: Final = logging.getLogger("vsock.switch.api")
_PEER: Final = "vsock.peer"

# The daemon's working directory means nothing to who asks.
_AbsolutePath = Annotated[str, Field(pattern="^/")]
_Scope = MutableMapping[str, Any]
_Asgi = Callable[[_Scope, Any, Any], Awaitable[None]]


class Controlled(Protocol):
    """What the API needs of a switch."""

    def info(self) -> SwitchRecord:
        """The switch itself."""

    def guests(self) -> list[GuestRecord]:
        """All guests."""

    def guest(self, guest: str | int) -> GuestRecord:
        """One guest, by name or CID."""

    def add_guest(
        self,
        name: str,
        cid: int,
        *,
        groups: list[str],
        socket: str | None,
        hybrid: bool | str,
        memory_slots: bool,
        host_aliases: list[int],
    ) -> GuestRecord:
        """Lets a guest in."""

    def change_guest(
        self,
        guest: str | int,
        *,
        cid: int | None,
        groups: list[str] | None,
        hybrid: bool | str | None,
    ) -> GuestRecord:
        """Gives a guest another CID, other groups, another hybrid socket or none."""

    def remove_guest(self, guest: str | int) -> None:
        """Forgets a guest."""

    def listeners(self) -> list[ListenerRecord]:
        """All listening host programs."""

    def datagrams(self) -> list[DatagramRecord]:
        """All datagram sockets of host programs."""

    def flows(self) -> list[FlowRecord]:
        """All connections."""

    def explain(self, source: str | int, destination: str | int) -> Verdict:
        """What the policy says, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGuest:
    """Body of `POST /v1/guests`."""

    name: str
    cid: Annotated[int, Field(ge=FIRST_GUEST_CID, le=LAST_GUEST_CID, strict=True)]
    groups: list[str] = field(default_factory=list)
    socket: _AbsolutePath | None = None
    hybrid: bool | _AbsolutePath = False
    memory_slots: bool = False
    host_aliases: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestChange:
    """Body of `PATCH /v1/guests/{guest}`: what is to change."""

    cid: Annotated[int, Field(ge=FIRST_GUEST_CID, le=LAST_GUEST_CID, strict=True)] | None = None
    groups: list[str] | None = None
    hybrid: bool | _AbsolutePath | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Body of every answer with a status of 400 or more."""

    error: str


def make_app(switch: Controlled) -> FastAPI:
    """The API of one switch as an ASGI application."""
    app = FastAPI(
        title="vsock switch",
        version="1",
        docs_url=None,
        redoc_url=None,
        responses={status: {"model": Refusal} for status in (404, 409, 415, 422)},
    )
    _add_questions(app, switch)
    _add_changes(app, switch)
    app.exception_handler(UsageError)(lambda _, error: _refusal(422, str(error)))
    app.exception_handler(NoSuchGuest)(lambda _, error: _refusal(404, _reason(error)))
    app.exception_handler(RequestValidationError)(_not_understood)
    app.exception_handler(TransportError)(lambda _, error: _refusal(409, _reason(error)))
    app.exception_handler(OSError)(lambda _, error: _refusal(409, _reason(error)))
    app.exception_handler(HTTPException)(_not_served)
    app.exception_handler(Exception)(lambda *_: _refusal(500, "internal error; it is in the log"))
    return app


def _add_questions(app: FastAPI, switch: Controlled) -> None:
    @app.get("/v1/switch", operation_id="get_switch")
    async def get_switch() -> SwitchRecord:
        """The switch itself: version, process, totals and counters."""
        return switch.info()

    @app.get("/v1/guests", operation_id="list_guests")
    async def list_guests() -> list[GuestRecord]:
        """All guests, by CID."""
        return switch.guests()

    @app.get("/v1/guests/{guest}", operation_id="get_guest")
    async def get_guest(guest: str) -> GuestRecord:
        """One guest, by name or CID."""
        return switch.guest(guest)

    @app.get("/v1/listeners", operation_id="list_listeners")
    async def list_listeners() -> list[ListenerRecord]:
        """Host programs that listen, by port."""
        return switch.listeners()

    @app.get("/v1/datagrams", operation_id="list_datagrams")
    async def list_datagrams() -> list[DatagramRecord]:
        """Datagram sockets of host programs, by port."""
        return switch.datagrams()

    @app.get("/v1/flows", operation_id="list_flows")
    async def list_flows() -> list[FlowRecord]:
        """Connections, oldest first."""
        return switch.flows()

    @app.get("/v1/policy", operation_id="explain_policy")
    async def explain_policy(source: str, destination: str) -> Verdict:
        """May `source` connect to `destination`, and which rule says so."""
        return switch.explain(source, destination)


def _add_changes(app: FastAPI, switch: Controlled) -> None:
    # In threads: to tell a guest first may take a second, in which others are answered.
    @app.post("/v1/guests", operation_id="add_guest", status_code=201)
    async def add_guest(new: NewGuest, request: Request) -> GuestRecord:
        """Lets one more guest in."""
        _log.info("add guest %s asked by %s", new.name, request.scope.get(_PEER))
        return await asyncio.to_thread(
            switch.add_guest,
            new.name,
            new.cid,
            groups=new.groups,
            socket=new.socket,
            hybrid=new.hybrid,
            memory_slots=new.memory_slots,
            host_aliases=new.host_aliases,
        )

    @app.patch("/v1/guests/{guest}", operation_id="change_guest")
    async def change_guest(guest: str, change: GuestChange, request: Request) -> GuestRecord:
        """Gives a running guest another CID (its connections end), groups, or hybrid socket (they go on)."""
        what = {name: value for name, value in asdict(change).items() if value is not None}
        if not what:
            raise UsageError("nothing to change: give cid, groups or hybrid")
        _log.info("change of %s to %s asked by %s", guest, what, request.scope.get(_PEER))
        return await asyncio.to_thread(
            switch.change_guest,
            guest,
            cid=change.cid,
            groups=change.groups,
            hybrid=change.hybrid,
        )

    @app.delete("/v1/guests/{guest}", operation_id="remove_guest", status_code=204)
    async def remove_guest(guest: str, request: Request) -> None:
        """Ends a guest's attachment and flows, and forgets it."""
        _log.info("remove guest %s asked by %s", guest, request.scope.get(_PEER))
        await asyncio.to_thread(switch.remove_guest, guest)


def _refusal(status: int, reason: str) -> JSONResponse:
    return JSONResponse(asdict(Refusal(reason)), status_code=status)


def _not_served(request: Request, error: HTTPException) -> JSONResponse:
    """No such path, or no such method there."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return _refusal(404, f"no {request.url.path} here; /openapi.json says what there is")
    return _refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


def _not_understood(request: Request, error: RequestValidationError) -> JSONResponse:
    """Faults of a body or a query; a body that was not said to be JSON has not even been read as such."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    sent = request.headers.get("transfer-encoding") or request.headers.get("content-length", "0")
    if sent != "0" and kind != "application/json":
        reason = f"the body is {kind or 'of no type'}: send Content-Type: application/json"
        return _refusal(415, f"{reason} (curl --json)")
    return _refusal(422, _faults(error))


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _faults(error: RequestValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'][1:])) or 'body'}: {fault['msg']}"
        for fault in error.errors()
    )


class ControlServer:
    """Serves the API of a switch at `path`, in the running loop, as an async context manager."""

    def __init__(self, switch: Controlled, path: Path) -> None:
        self._path = path
        config = uvicorn.Config(
            make_app(switch),
            http=_PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before it has a name, which gets this mode
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
        self._server.should_exit = True
        if self._serving:
            await self._serving
        self._path.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """uvicorn's server as a guest in somebody's program: signals are not its business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


class _PeerProtocol(H11Protocol):
    """HTTP/1.1 that tells the application which process is at the other end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own annotation
        super().connection_made(transport)
        peer = peer_of(transport.get_extra_info("socket"))
        app: _Asgi = self.app

        async def app_with_peer(scope: _Scope, receive: Any, send: Any) -> None:
            scope[_PEER] = peer
            await app(scope, receive, send)

        self.app = app_with_peer

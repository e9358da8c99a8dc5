"""The control API as an ASGI application: HTTP with JSON, described by `/openapi.json`.

Each handler turns a request into one call of `Switch`, the result into a record, and an exception into a
status with one line. `control.schema` reads the bodies, as it reads config files. The server puts the
switch and the client's process into the request's scope, and handlers that change something log it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, make_dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from fastapi import Body, Depends, FastAPI, Request
from fastapi import HTTPException as Refused
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsock.control.model import (
    DatagramRecord,
    FlowRecord,
    GuestRecord,
    GuestSpec,
    ListenerRecord,
    SwitchRecord,
)
from vsock.control.policy import Verdict
from vsock.control.schema import Fault, SchemaError, about, fields_of, read, read_changes
from vsock.control.services import ServiceRecord
from vsock.errors import NoSuchGuest, TransportError, UsageError

if TYPE_CHECKING:
    from vsock.switch.switch import Switch

__all__ = ["PEER", "SWITCH", "app"]

_log: Final = logging.getLogger("vsock.switch.api")

PEER: Final = "vsock.peer"
"""The key in a request's scope under which the server puts the client's process."""

SWITCH: Final = "vsock.switch"
"""The key of the switch that is asked."""


MOST_BODY: Final = 1 << 20
"""Bytes of a request's body, at most: a guest's settings are a thousandth of that."""


class _BoundedBodies:
    """Reads no more of a request than it may have, so that no client decides how much memory the switch takes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = MOST_BODY

        async def receive_within() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise Refused(413, f"the body is longer than {MOST_BODY} bytes")
            return message

        await self._app(scope, receive_within, send)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Body of every answer with a status of 400 or more."""

    error: str


class _ReadBy:
    """Makes pydantic call `reads` on a body, and describe the body as the type `described`."""

    def __init__(self, reads: Callable[[Mapping[str, object]], object], described: type) -> None:
        self._reads = reads
        self._described = described

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler(self._described))

    def _read(self, body: object, described: Any) -> object:
        if not isinstance(body, Mapping):
            return described(body)  # fails, and says which type was expected
        try:
            return self._reads(body)
        except SchemaError as error:
            faults = [_line_of(fault, body) for fault in error.faults]
            raise ValidationError.from_exception_data("body", faults) from None


def _line_of(fault: Fault, body: object) -> InitErrorDetails:
    reason = PydanticCustomError("fault", "{reason}", {"reason": fault.reason})
    return InitErrorDetails(type=reason, loc=(fault.field,), input=body)


_ABLE: Final = {name: it for name, it in fields_of(GuestSpec).items() if not about(it).is_fixed}
_CHANGEABLE: Final = " or ".join([", ".join([*_ABLE][:-1]), [*_ABLE][-1]])

GuestChange = make_dataclass(
    "GuestChange",
    [(name, cast("Any", it.type) | None, None) for name, it in _ABLE.items()],
    frozen=True,
)
GuestChange.__doc__ = "Body of `PATCH /v1/guests/{guest}`: what is to change."

_NewGuest = Annotated[GuestSpec, Body(), _ReadBy(partial(read, GuestSpec), GuestSpec)]
_Changes = Annotated[dict[str, Any], Body(), _ReadBy(partial(read_changes, GuestSpec), GuestChange)]


async def _switch_of(request: Request) -> "Switch":
    return cast("Switch", request.scope[SWITCH])


if TYPE_CHECKING:
    _Asked = Annotated[Switch, Depends(_switch_of)]
else:
    _Asked = Annotated[object, Depends(_switch_of)]
"""The switch that is asked."""

# One for all switches of a process: FastAPI keeps each handler for ever, and with it what the handler refers to.
app: Final = FastAPI(
    title="vsock switch",
    version="1",
    docs_url=None,
    redoc_url=None,
    responses={status: {"model": Refusal} for status in (404, 409, 413, 415, 422)},
)
app.add_middleware(_BoundedBodies)


@app.get("/v1/switch", operation_id="get_switch")
async def get_switch(switch: _Asked) -> SwitchRecord:
    """The switch itself: version, process, totals and counters."""
    return switch.info()


# Guests in threads: the names of their sockets' users may have to be fetched from another machine (nss(5)).
@app.get("/v1/guests", operation_id="list_guests")
async def list_guests(switch: _Asked) -> list[GuestRecord]:
    """All guests, by CID."""
    return await asyncio.to_thread(switch.guests)


@app.get("/v1/guests/{guest}", operation_id="get_guest")
async def get_guest(switch: _Asked, guest: str) -> GuestRecord:
    """One guest, by name or CID."""
    return await asyncio.to_thread(switch.guest, guest)


@app.get("/v1/listeners", operation_id="list_listeners")
async def list_listeners(switch: _Asked) -> list[ListenerRecord]:
    """Host programs that listen, by port."""
    return switch.listeners()


@app.get("/v1/datagrams", operation_id="list_datagrams")
async def list_datagrams(switch: _Asked) -> list[DatagramRecord]:
    """Datagram sockets of host programs, by port."""
    return switch.datagrams()


@app.get("/v1/services", operation_id="list_services")
async def list_services(switch: _Asked) -> list[ServiceRecord]:
    """Forwards and proxies that the switch runs, in the order of its config file."""
    return switch.services()


@app.get("/v1/flows", operation_id="list_flows")
async def list_flows(switch: _Asked) -> list[FlowRecord]:
    """Connections, oldest first."""
    return switch.flows()


@app.get("/v1/policy", operation_id="explain_policy")
async def explain_policy(switch: _Asked, source: str, destination: str) -> Verdict:
    """May `source` connect to `destination`, and which rule says so."""
    return switch.explain(source, destination)


# In threads: to tell a guest first may take a second, in which others are answered.
@app.post("/v1/guests", operation_id="add_guest", status_code=201)
async def add_guest(switch: _Asked, new: _NewGuest, request: Request) -> GuestRecord:
    """Lets one more guest in."""
    _log.info("add guest %s asked by %s", new.name, request.scope.get(PEER))
    return await asyncio.to_thread(switch.add, new)


@app.patch("/v1/guests/{guest}", operation_id="change_guest")
async def change_guest(switch: _Asked, guest: str, what: _Changes, request: Request) -> GuestRecord:
    """Gives a running guest another CID (its connections end), groups, or hybrid socket (they go on)."""
    if not what:
        raise UsageError(f"nothing to change: give {_CHANGEABLE}")
    _log.info("change of %s to %s asked by %s", guest, what, request.scope.get(PEER))
    return await asyncio.to_thread(switch.change_guest, guest, **what)


@app.delete("/v1/guests/{guest}", operation_id="remove_guest", status_code=204)
async def remove_guest(switch: _Asked, guest: str, request: Request) -> None:
    """Ends a guest's attachment and flows, and forgets it."""
    _log.info("remove guest %s asked by %s", guest, request.scope.get(PEER))
    await asyncio.to_thread(switch.remove_guest, guest)


def _error_response(status: int, reason: str) -> JSONResponse:
    return JSONResponse(asdict(Refusal(reason)), status_code=status)


def _not_served(request: Request, error: HTTPException) -> JSONResponse:
    """No such path, or no such method there."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return _error_response(404, f"no {request.url.path} here; /openapi.json says what there is")
    return _error_response(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}"
    )


def _not_understood(request: Request, error: RequestValidationError) -> JSONResponse:
    """Faults of a body or a query; a body that was not said to be JSON has not even been read as such."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    sent = request.headers.get("transfer-encoding") or request.headers.get("content-length", "0")
    if sent != "0" and kind != "application/json":
        reason = f"the body is {kind or 'of no type'}: send Content-Type: application/json"
        return _error_response(415, f"{reason} (curl --json)")
    return _error_response(422, _faults(error))


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _faults(error: RequestValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'][1:])) or 'body'}: {fault['msg']}"
        for fault in error.errors()
    )


app.exception_handler(UsageError)(lambda _, error: _error_response(422, str(error)))
app.exception_handler(NoSuchGuest)(lambda _, error: _error_response(404, _reason(error)))
app.exception_handler(RequestValidationError)(_not_understood)
app.exception_handler(TransportError)(lambda _, error: _error_response(409, _reason(error)))
app.exception_handler(OSError)(lambda _, error: _error_response(409, _reason(error)))
app.exception_handler(HTTPException)(_not_served)
app.exception_handler(Exception)(
    lambda *_: _error_response(500, "internal error; it is in the log")
)

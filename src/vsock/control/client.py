"""A client of the control API that needs only the standard library.

Command line tools use it, so it must be fast to import: it uses neither asyncio nor pydantic. Each request
has its own connection.
"""

import errno
import http.client
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from vsock.address import WELL_KNOWN_CIDS, is_name
from vsock.control.model import (
    DatagramRecord,
    FlowRecord,
    GuestRecord,
    GuestSpec,
    ListenerRecord,
    SwitchRecord,
)
from vsock.control.policy import Verdict
from vsock.control.schema import fields_of, from_json
from vsock.control.services import ServiceRecord
from vsock.errors import (
    NoSuchGuest,
    NoSwitch,
    SwitchGone,
    TransportError,
    no_guest,
    no_switch,
    path_too_long,
)
from vsock.runtime import LONGEST_SOCKET_PATH, RuntimeFiles, default_runtime_dir

__all__ = ["ControlClient"]

_TIMEOUT: Final = 10.0
_PAUSE: Final = 0.01
_ABSENT: Final = (FileNotFoundError, ConnectionRefusedError, NotADirectoryError)


class ControlClient:
    """Sends requests to one switch. Every method may raise NoSwitch, SwitchGone or TransportError."""

    def __init__(
        self, runtime_dir: str | os.PathLike[str] | None = None, *, timeout: float = _TIMEOUT
    ) -> None:
        directory = Path(runtime_dir) if runtime_dir is not None else default_runtime_dir()
        self._files = RuntimeFiles(directory)
        self._timeout = timeout

    def switch(self) -> SwitchRecord:
        """The switch itself."""
        return from_json(SwitchRecord, self._ask("GET", "/v1/switch"))

    def guests(self) -> list[GuestRecord]:
        """All guests, by CID."""
        return [from_json(GuestRecord, item) for item in self._ask("GET", "/v1/guests")]

    def guest(self, guest: str | int) -> GuestRecord:
        """One guest, by name or CID. Raises NoSuchGuest."""
        return from_json(GuestRecord, self._ask("GET", self._path_of(guest)))

    def listeners(self) -> list[ListenerRecord]:
        """Host programs that listen, by port."""
        return [from_json(ListenerRecord, item) for item in self._ask("GET", "/v1/listeners")]

    def datagrams(self) -> list[DatagramRecord]:
        """Datagram sockets of host programs, by port."""
        return [from_json(DatagramRecord, item) for item in self._ask("GET", "/v1/datagrams")]

    def services(self) -> list[ServiceRecord]:
        """Forwards and proxies that the switch runs."""
        return [from_json(ServiceRecord, item) for item in self._ask("GET", "/v1/services")]

    def flows(self) -> list[FlowRecord]:
        """Connections, oldest first."""
        return [from_json(FlowRecord, item) for item in self._ask("GET", "/v1/flows")]

    def add_guest(self, guest: GuestSpec) -> GuestRecord:
        """Lets one more guest in."""
        # Defaults are not sent, so that an older switch accepts a request without newer fields.
        said = {name: getattr(guest, name) for name in fields_of(GuestSpec)}
        body = {
            name: value
            for name, value in said.items()
            if value != fields_of(GuestSpec)[name].default
        }
        return from_json(GuestRecord, self._ask("POST", "/v1/guests", body))

    def set_guest_cid(self, guest: str | int, cid: int) -> GuestRecord:
        """Gives a guest another CID while it runs; its connections end. Raises NoSuchGuest."""
        return self.change_guest(guest, cid=cid)

    def change_guest(self, guest: str | int, **changes: object) -> GuestRecord:
        """Changes fields of `GuestSpec` while the guest runs; None keeps a value. Raises NoSuchGuest."""
        wanted = {name: value for name, value in changes.items() if value is not None}
        return from_json(GuestRecord, self._ask("PATCH", self._path_of(guest), wanted))

    def remove_guest(self, guest: str | int) -> None:
        """Ends a guest's attachment and flows, and forgets it. Raises NoSuchGuest."""
        self._ask("DELETE", self._path_of(guest))

    def explain(self, source: str | int, destination: str | int) -> Verdict:
        """May `source` connect to `destination` (names or CIDs; "host"), and why. Raises NoSuchGuest."""
        for who in (source, destination):
            self._check(who)
        query = urlencode({"source": source, "destination": destination})
        return from_json(Verdict, self._ask("GET", f"/v1/policy?{query}"))

    def _path_of(self, guest: str | int) -> str:
        self._check(guest)
        return f"/v1/guests/{quote(str(guest), safe='')}"

    def _check(self, guest: str | int) -> None:
        """What no guest can be called must not get into a URL, where it would mean something else."""
        text = str(guest)
        if not (is_name(text) or text in WELL_KNOWN_CIDS or (text.isascii() and text.isdigit())):
            raise no_guest(guest, [record.name for record in self.guests()])

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        if len(os.fsencode(self._files.control)) > LONGEST_SOCKET_PATH:
            raise path_too_long(self._files.control)
        connection = _UnixConnection(self._files.control, self._timeout)
        try:
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body, default=str),
                headers={} if body is None else {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            content = response.read()
        except _ABSENT:
            raise no_switch(self._files.directory) from None
        except TimeoutError:
            raise SwitchGone(
                errno.ETIMEDOUT, f"the switch did not answer within {self._timeout:g} s"
            ) from None
        except PermissionError:
            raise NoSwitch(
                errno.EACCES, f"{self._files.control} belongs to another user; become that user"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise SwitchGone(errno.ENODEV, f"the switch went away: {error}") from error
        finally:
            connection.close()
        return _answer(response.status, content)


def _answer(status: int, content: bytes) -> Any:
    if status == http.HTTPStatus.NO_CONTENT:
        return None
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if status < 400:
        if answer is None:
            raise SwitchGone(errno.ENODEV, "the switch went away while it answered")
        return answer
    reason = answer.get("error") if isinstance(answer, dict) else None
    reason = reason or f"the switch answered with HTTP status {status}"
    if status == http.HTTPStatus.NOT_FOUND:
        raise NoSuchGuest(errno.ENODEV, reason)
    if status == http.HTTPStatus.CONFLICT:
        raise TransportError(errno.EADDRINUSE, reason)
    raise TransportError(errno.EINVAL, reason)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("switch", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        deadline = time.monotonic() + (self.timeout or 0.0)
        while True:
            try:
                return self.sock.connect(os.fspath(self._path))
            except BlockingIOError:
                # Too many wait at the socket; the kernel waits for them only if the socket has no timeout.
                if time.monotonic() >= deadline:
                    raise TimeoutError from None
            time.sleep(_PAUSE)

"""What the control API says: one frozen record per kind of thing.

The server makes them from the data plane's snapshot, the client gets them back, and the command
line prints them; `dataclasses.asdict` of a record is its JSON. Light, so that a command line tool
can import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from vsock.address import Address

if TYPE_CHECKING:
    from vsock import _native

__all__ = [
    "DatagramRecord",
    "FlowRecord",
    "GuestRecord",
    "ListenerRecord",
    "SwitchRecord",
    "from_json",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRecord:
    """The switch itself. `counters` are the data plane's, by name."""

    version: str
    pid: int
    runtime_dir: str
    cid: int
    uptime: float
    guests: int
    listeners: int
    flows: int
    counters: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecord:
    """A guest. `state` is waiting (no VMM), attached (no driver yet) or running."""

    name: str
    cid: int
    socket: str
    hybrid: str | None
    groups: list[str]
    state: str
    connections: int
    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int
    errors: int

    @classmethod
    def of(cls, info: "_native.GuestInfo") -> "GuestRecord":
        """The record of what the data plane knows."""
        return cls(
            name=info.name,
            cid=info.cid,
            socket=info.socket,
            hybrid=info.hybrid,
            groups=list(info.groups),
            state=info.state,
            connections=info.connections,
            bytes_in=info.bytes_in,
            bytes_out=info.bytes_out,
            packets_in=info.packets_in,
            packets_out=info.packets_out,
            errors=info.errors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerRecord:
    """A host program that listens; `type` is stream or seqpacket."""

    cid: int
    port: int
    type: str
    backlog: int
    pid: int
    uid: int

    @classmethod
    def of(cls, info: "_native.ListenerInfo") -> "ListenerRecord":
        """The record of what the data plane knows."""
        return cls(
            cid=info.cid,
            port=info.port,
            type=info.type,
            backlog=info.backlog,
            pid=info.pid,
            uid=info.uid,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramRecord:
    """A host program's datagram socket.

    `sent` counts datagrams by it that left the switch or were received on the host, `received`
    those that it can receive or has, `dropped` those that were lost because it did not receive.
    """

    cid: int
    port: int
    sent: int
    received: int
    dropped: int
    pid: int
    uid: int

    @classmethod
    def of(cls, info: "_native.DatagramInfo") -> "DatagramRecord":
        """The record of what the data plane knows."""
        return cls(
            cid=info.cid,
            port=info.port,
            sent=info.sent,
            received=info.received,
            dropped=info.dropped,
            pid=info.pid,
            uid=info.uid,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRecord:
    """One connection; `bytes_out` went from source to destination, `bytes_in` the other way."""

    id: int
    type: str
    source: str
    destination: str
    state: str
    bytes_out: int
    bytes_in: int
    age: float
    pid: int | None

    @classmethod
    def of(cls, info: "_native.FlowInfo") -> "FlowRecord":
        """The record of what the data plane knows."""
        return cls(
            id=info.id,
            type=info.type,
            source=str(Address(*info.source)),
            destination=str(Address(*info.destination)),
            state=info.state,
            bytes_out=info.bytes_out,
            bytes_in=info.bytes_in,
            age=info.age,
            pid=info.pid,
        )


def from_json(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """The record in an answer; what a newer server says on top is left out."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type] # records only
    return kind(**{key: value for key, value in data.items() if key in known})

"""What the control API says: one frozen record per kind of thing.

The server makes them from the data plane's snapshot, the client gets them back, and the command
line prints them; `dataclasses.asdict` of a record is its JSON. Light, so that a command line tool
can import it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
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
    host_aliases: list[int]
    state: str
    connections: int
    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int
    errors: int
    pid: int | None = None
    program: str | None = None

    @classmethod
    def of(cls, info: "_native.GuestInfo") -> "GuestRecord":
        """The record of what the data plane knows."""
        pid = info.front_end_pid or None
        return _same(cls, info, pid=pid, program=program_of(pid))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerRecord:
    """A host program that listens; `type` is stream or seqpacket."""

    cid: int
    port: int
    type: str
    backlog: int
    pid: int
    uid: int
    program: str | None = None

    @classmethod
    def of(cls, info: "_native.ListenerInfo") -> "ListenerRecord":
        """The record of what the data plane knows."""
        return _same(cls, info, program=program_of(info.pid))


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
    program: str | None = None

    @classmethod
    def of(cls, info: "_native.DatagramInfo") -> "DatagramRecord":
        """The record of what the data plane knows."""
        return _same(cls, info, program=program_of(info.pid))


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
    program: str | None = None

    @classmethod
    def of(cls, info: "_native.FlowInfo") -> "FlowRecord":
        """The record of what the data plane knows."""
        source, destination = str(Address(*info.source)), str(Address(*info.destination))
        program = program_of(info.pid)
        return _same(cls, info, source=source, destination=destination, program=program)


def program_of(pid: int | None) -> str | None:
    """The name of a process, as ps(1) has it; None if it has ended, or is not to be seen from here."""
    if not pid:
        return None
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # A program chooses its name itself: it must not write to the terminal of who lists it.
    return "".join(letter if letter.isprintable() else "?" for letter in name.rstrip("\n"))


def _same(kind: type[_T], info: object, **others: object) -> _T:
    """The record with the values that `info` has under the same names, and `others`."""
    names = {field.name for field in fields(kind)} - others.keys()  # type: ignore[arg-type] # records only
    return kind(**{name: getattr(info, name) for name in names}, **others)


def from_json(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """The record in an answer; what a newer server says on top is left out."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type] # records only
    return kind(**{key: value for key, value in data.items() if key in known})

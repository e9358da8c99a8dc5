"""Makes the records of the control API from the data plane's snapshot, and reads program names from /proc."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from vsock.address import Address
from vsock.control.model import DatagramRecord, FlowRecord, GuestRecord, GuestSpec, ListenerRecord
from vsock.control.schema import fields_of, from_json

if TYPE_CHECKING:
    from vsock import _native

__all__ = ["datagram", "flow", "guest", "listener", "program_of"]

_T = TypeVar("_T")

_OF_A_GUEST: Final = (
    fields_of(GuestRecord).keys() - fields_of(GuestSpec).keys() - {"pid", "program"}
)


def guest(info: "_native.GuestInfo") -> GuestRecord:
    """The record of a guest: its options, its state and its counters."""
    pid = info.front_end_pid or None
    numbers = {name: getattr(info, name) for name in _OF_A_GUEST}
    program = program_of(pid)
    return from_json(GuestRecord, {**info.options, **numbers, "pid": pid, "program": program})


def listener(info: "_native.ListenerInfo") -> ListenerRecord:
    """The record of a host program that listens."""
    return _same(ListenerRecord, info, program=program_of(info.pid))


def datagram(info: "_native.DatagramInfo") -> DatagramRecord:
    """The record of a host program's datagram socket."""
    return _same(DatagramRecord, info, program=program_of(info.pid))


def flow(info: "_native.FlowInfo") -> FlowRecord:
    """The record of a connection."""
    source, destination = str(Address(*info.source)), str(Address(*info.destination))
    program = program_of(info.pid)
    return _same(FlowRecord, info, source=source, destination=destination, program=program)


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

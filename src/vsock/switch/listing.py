"""Makes the records of the control API from the data plane's snapshot, and reads program names from /proc."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsock._system.text import printable
from vsock.address import Address
from vsock.control.model import DatagramRecord, FlowRecord, GuestRecord, ListenerRecord
from vsock.control.schema import from_json
from vsock.switch.access import from_native
from vsock.switch.readiness import Readiness

__all__ = ["datagram", "flow", "guest", "listener", "program_of"]

_Info = Mapping[str, Any]


def guest(info: _Info, readiness: Readiness) -> GuestRecord:
    """The record of a guest: its options, its state, what it has said, and its counters."""
    pid = info["front_end_pid"] or None
    options = from_native(info["options"])
    more = {**options, "pid": pid, "program": program_of(pid)}
    said = readiness.of(options["name"], info["counters"]["driver_starts"])
    if said and info["state"] == "running":
        more |= {"ready": said.ready, "status": said.status}
        if said.since is not None:
            more["ready_for"] = time.monotonic() - said.since
    return from_json(GuestRecord, {**info, **more})


def listener(info: _Info) -> ListenerRecord:
    """The record of a host program that listens."""
    return from_json(ListenerRecord, {**info, "program": program_of(info["pid"])})


def datagram(info: _Info) -> DatagramRecord:
    """The record of a host program's datagram socket."""
    return from_json(DatagramRecord, {**info, "program": program_of(info["pid"])})


def flow(info: _Info) -> FlowRecord:
    """The record of a connection."""
    ends = {name: str(Address(*info[name])) for name in ("source", "destination")}
    return from_json(FlowRecord, {**info, **ends, "program": program_of(info["pid"])})


def program_of(pid: int | None) -> str | None:
    """The name of a process, as ps(1) has it; None if it has ended, or is not to be seen from here."""
    if not pid:
        return None
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # A program chooses its name itself: it must not write to the terminal of who lists it.
    return printable(name.rstrip("\n"))

"""What a switch is told to be, and the steps from what it is now.

Pure: specifications in, faults or steps out. Config files, the control API and embedding
programs all describe a guest by a `GuestSpec`, so the rules for names and CIDs are here, once.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vsock.address import CID_ANY, CID_HOST, WELL_KNOWN_CIDS, is_name
from vsock.errors import UsageError
from vsock.runtime import LONGEST_SOCKET_PATH

FIRST_GUEST_CID: Final = CID_HOST + 1
"""The CIDs below are the hypervisor, the local machine and the host."""

LAST_GUEST_CID: Final = CID_ANY - 1
"""The CID above is the wildcard."""

MOST_ALIASES: Final = 8
"""Looked through for each packet that a guest sends elsewhere than to CID 2."""

POLL_US: Final = 50
"""How long a switch looks for packets before it sleeps, in microseconds: two wake-ups within a VM."""

LONGEST_POLL_US: Final = 1000

LINGER_TIMEOUT: Final = 600.0
"""How long, in seconds, what a program sent before it closed may wait for the other side to take some."""

LONGEST_LINGER_TIMEOUT: Final = 86_400.0
"""A day."""

LONGEST_PORT_SUFFIX: Final = f"_{0xFFFFFFFF}"
"""A program that listens on a port of a hybrid socket has a socket whose path is the hybrid one's and this."""

__all__ = [
    "FIRST_GUEST_CID",
    "LAST_GUEST_CID",
    "LINGER_TIMEOUT",
    "LONGEST_LINGER_TIMEOUT",
    "LONGEST_POLL_US",
    "LONGEST_PORT_SUFFIX",
    "POLL_US",
    "Add",
    "Change",
    "Fault",
    "GuestSpec",
    "Remove",
    "Step",
    "checked_linger",
    "checked_poll",
    "conflicts",
    "faults",
    "steps",
]

_NAME_RULE = "a letter, then letters, digits and . _ -, at most 63"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """One guest as somebody wants it.

    `socket` is None for the usual place in the runtime directory; `hybrid` is None for no hybrid
    socket. Guests that share a group may talk to each other. `memory_slots` is for guests with more
    than 8 memory regions (hot-plugged memory): QEMU then hands regions over one by one, and does not
    do so again to a restarted switch, so that a reboot of the guest no longer heals it.
    `host_aliases` are CIDs by which the guest reaches the host besides 2: software for Nitro enclaves
    calls its parent 3.
    """

    name: str
    cid: int
    groups: tuple[str, ...] = ()
    socket: Path | None = None
    hybrid: Path | None = None
    memory_slots: bool = False
    host_aliases: tuple[int, ...] = ()


def checked_poll(microseconds: object) -> int:
    """The same, if a switch can poll for so long. Raises UsageError."""
    if not isinstance(microseconds, int) or not 0 <= microseconds <= LONGEST_POLL_US:
        raise UsageError(f"poll_us must be 0 to {LONGEST_POLL_US} microseconds, not {microseconds}")
    return microseconds


def checked_linger(seconds: float) -> float:
    """The same, if flows can linger for so long. Raises UsageError."""
    if not 0 < seconds <= LONGEST_LINGER_TIMEOUT:
        raise UsageError(
            f"linger_timeout must be above 0 and at most {LONGEST_LINGER_TIMEOUT:.0f} seconds, "
            f"not {seconds:g}"
        )
    return float(seconds)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a specification: which field, and why."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Add:
    """Step: let this guest in."""

    guest: GuestSpec


@dataclass(frozen=True, slots=True)
class Remove:
    """Step: end this guest's attachment and flows, and forget it."""

    guest: GuestSpec


@dataclass(frozen=True, slots=True)
class Change:
    """Step: give a guest another CID, other groups, another hybrid socket; its attachment stays."""

    before: GuestSpec
    guest: GuestSpec


Step = Add | Remove | Change


def faults(guest: GuestSpec) -> list[Fault]:
    """Everything that is wrong with one specification, looked at alone."""
    return [
        *_name_faults(guest.name),
        *_cid_faults(guest.cid),
        *_group_faults(guest.groups),
        *_alias_faults(guest),
        *_path_faults("socket", guest.socket, LONGEST_SOCKET_PATH),
        *_path_faults("hybrid", guest.hybrid, LONGEST_SOCKET_PATH - len(LONGEST_PORT_SUFFIX)),
    ]


def conflicts(guest: GuestSpec, others: Iterable[GuestSpec]) -> list[Fault]:
    """What `guest` claims although one of `others` has it."""
    found = []
    for other in others:
        if guest.name == other.name:
            found.append(Fault("name", f"guest {other.name} exists already, with CID {other.cid}"))
        if guest.cid == other.cid:
            found.append(Fault("cid", f"CID {other.cid} belongs to guest {other.name}"))
        found += _alias_conflicts(guest, other)
        theirs = {other.socket, other.hybrid} - {None}
        for field, path in (("socket", guest.socket), ("hybrid", guest.hybrid)):
            if path in theirs:
                found.append(Fault(field, f"{path} is used by guest {other.name}"))
    return found


def steps(wanted: Iterable[GuestSpec], actual: Iterable[GuestSpec]) -> list[Step]:
    """The steps from `actual` to `wanted`; guests that stay as they are take none.

    Removals come first, so that a name or CID can pass from one guest to another. A guest whose
    entry differs in nothing that its front end has been told keeps its attachment.
    """
    old = {guest.name: guest for guest in actual}
    new = {guest.name: guest for guest in wanted}
    changes = [
        Change(before, new[name])
        for name, before in old.items()
        if name in new and before != new[name] and _can_change(before, new[name], old.values())
    ]
    stay = {change.guest.name for change in changes}
    stay |= {name for name, guest in new.items() if old.get(name) == guest}
    removals = [Remove(guest) for name, guest in old.items() if name not in stay]
    additions = [Add(guest) for name, guest in new.items() if name not in stay]
    return [*removals, *changes, *additions]


def _can_change(before: GuestSpec, after: GuestSpec, others: Iterable[GuestSpec]) -> bool:
    """Whether a guest can become `after` while it runs: nothing of it may still be another's."""
    same = replace(before, cid=after.cid, groups=after.groups, hybrid=after.hybrid) == after
    return same and not conflicts(after, [other for other in others if other.name != before.name])


def _name_faults(name: object) -> list[Fault]:
    if not isinstance(name, str):
        return [Fault("name", f"{name!r} is no guest name: text is")]
    if name in WELL_KNOWN_CIDS:
        return [Fault("name", f"{name!r} is CID {WELL_KNOWN_CIDS[name]}: choose another name")]
    if not is_name(name):
        return [Fault("name", f"{name!r} is no guest name: {_NAME_RULE}")]
    return []


def _cid_faults(cid: object) -> list[Fault]:
    if isinstance(cid, bool) or not isinstance(cid, int):
        return [Fault("cid", f"{cid!r} is no CID: an integer is")]
    if FIRST_GUEST_CID <= cid <= LAST_GUEST_CID:
        return []
    return [Fault("cid", f"{cid} is no guest's CID: {FIRST_GUEST_CID} to {LAST_GUEST_CID}")]


def _group_faults(groups: Iterable[object]) -> list[Fault]:
    return [
        Fault("groups", f"{group!r} is no group name: {_NAME_RULE}")
        for group in groups
        if not isinstance(group, str) or not is_name(group)
    ]


def _alias_faults(guest: GuestSpec) -> list[Fault]:
    found = []
    for alias in guest.host_aliases:
        if alias == guest.cid:
            reason = f"{alias} is the guest's own CID, which its kernel never sends out"
            found.append(Fault("host_aliases", reason))
        else:
            found += [Fault("host_aliases", fault.reason) for fault in _cid_faults(alias)]
    if len(guest.host_aliases) > MOST_ALIASES:
        found.append(Fault("host_aliases", f"at most {MOST_ALIASES}"))
    return found


def _alias_conflicts(guest: GuestSpec, other: GuestSpec) -> list[Fault]:
    """Of two guests that may talk, neither can have a CID that is the host to the other: it would never be reached."""
    if not set(guest.groups) & set(other.groups):
        return []
    found = []
    if other.cid in guest.host_aliases:
        reason = f"CID {other.cid} belongs to guest {other.name}, of the same group"
        found.append(Fault("host_aliases", reason))
    if guest.cid in other.host_aliases:
        reason = f"CID {guest.cid} is the host to guest {other.name}, of the same group"
        found.append(Fault("cid", reason))
    return found


def _path_faults(field: str, path: Path | None, longest: int) -> list[Fault]:
    if path is None:
        return []
    if "\0" in str(path):
        return [Fault(field, "a path has no NUL")]
    if not path.is_absolute():
        return [Fault(field, f"{path} is relative: the daemon's directory is not yours")]
    size = len(os.fsencode(path))
    if size <= longest:
        return []
    if field == "hybrid":
        why = f"a hybrid socket's path at most {longest}, as _PORT must fit behind it"
    else:
        why = f"a Unix socket's path at most {longest}"
    return [Fault(field, f"{path} has {size} bytes, {why}")]

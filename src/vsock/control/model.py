"""The schemas of a switch and of everything in it: specifications go in, records come back.

Config files, the control API, the command line and Python programs all describe a guest by `GuestSpec`
and a switch by `SwitchSpec`; `schema.read` makes and checks both. `GuestRecord` extends `GuestSpec`, so a
new field of a guest is declared once, here. `dataclasses.asdict` of a record is its JSON. Pure.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from vsock.address import CID_ANY, CID_HOST, WELL_KNOWN_CIDS, is_name
from vsock.control.schema import About, Fault, Rule, about, fields_of
from vsock.runtime import LONGEST_SOCKET_PATH, RuntimeFiles

FIRST_GUEST_CID: Final = CID_HOST + 1
"""The CIDs below are the hypervisor, the local machine and the host."""

LAST_GUEST_CID: Final = CID_ANY - 1
"""The CID above is the wildcard."""

MOST_ALIASES: Final = 8
"""Looked through for each packet that a guest sends elsewhere than to CID 2."""

NOTIFY_PORT: Final = 73_239
"""The port of CID 2 on which a switch with a control API hears that a guest is ready: READY on the keys of a telephone."""

LONGEST_TEXT: Final = 200
"""Characters in a line of free text."""

POLL_US: Final = 50
"""How long a switch looks for packets before it sleeps, in microseconds: two wake-ups within a VM."""

LONGEST_POLL_US: Final = 1000

LINGER_TIMEOUT: Final = 600.0
"""How long, in seconds, what a program sent before it closed may wait for the other side to take some."""

LONGEST_LINGER_TIMEOUT: Final = 86_400.0
"""A day."""

MEMORY_LIMIT_GIB: Final = 1024
"""Memory of a guest at most, if nothing else is said: more than any guest has that we know."""

LARGEST_MEMORY_LIMIT_GIB: Final = 32 * 1024
"""Half of what a switch maps for all guests together."""

OWN_MODE: Final = "0600"
"""The permission bits of a socket that only the switch's user may use."""

BUFFER_LIMIT_MIB: Final = 64
"""MiB that the receive buffers of a guest's connections with host programs have together, if nothing else is said."""

LOWEST_BUFFER_LIMIT_MIB: Final = 16
"""Lowest such limit: 4 KiB for each of 4096 connections."""

HIGHEST_BUFFER_LIMIT_MIB: Final = 64 * 1024
"""Highest one: 16 MiB for each."""

LOWEST_RATE: Final = 64 * 1024
"""Lowest limit of a guest's bytes in a second: its packets may have as many bytes, and nothing goes between them."""

HIGHEST_RATE: Final = 1 << 40
"""Highest one, far above what any machine moves."""

LONGEST_PORT_SUFFIX: Final = f"_{0xFFFFFFFF}"
"""A program that listens on a port of a hybrid socket has a socket whose path is the hybrid one's and this."""

__all__ = [
    "BUFFER_LIMIT_MIB",
    "FIRST_GUEST_CID",
    "HIGHEST_BUFFER_LIMIT_MIB",
    "HIGHEST_RATE",
    "LARGEST_MEMORY_LIMIT_GIB",
    "LAST_GUEST_CID",
    "LINGER_TIMEOUT",
    "LONGEST_LINGER_TIMEOUT",
    "LONGEST_POLL_US",
    "LONGEST_PORT_SUFFIX",
    "LONGEST_TEXT",
    "LOWEST_BUFFER_LIMIT_MIB",
    "LOWEST_RATE",
    "MEMORY_LIMIT_GIB",
    "NOTIFY_PORT",
    "OWN_MODE",
    "POLL_US",
    "DatagramRecord",
    "FlowRecord",
    "GuestRecord",
    "GuestSpec",
    "ListenerRecord",
    "SwitchRecord",
    "SwitchSpec",
    "conflicts",
    "settings",
    "with_paths",
]

_NAME_RULE = "a letter, then letters, digits and . _ -, at most 63"


def _wrong_name(name: str) -> str | None:
    if name in WELL_KNOWN_CIDS:
        return f"{name!r} is CID {WELL_KNOWN_CIDS[name]}: choose another name"
    return None if is_name(name) else f"{name!r} is no guest name: {_NAME_RULE}"


def _wrong_group(name: str) -> str | None:
    return None if is_name(name) else f"{name!r} is no group name: {_NAME_RULE}"


def _wrong_cid(cid: int) -> str | None:
    if FIRST_GUEST_CID <= cid <= LAST_GUEST_CID:
        return None
    return f"{cid} is no guest's CID: {FIRST_GUEST_CID} to {LAST_GUEST_CID}"


def _wrong_path(path: Path, longest: int, limit: str) -> str | None:
    if "\0" in str(path):
        return "a path has no NUL"
    if not path.is_absolute():
        return f"{path} is relative: the daemon's directory is not yours"
    size = len(os.fsencode(path))
    return None if size <= longest else f"{path} has {size} bytes, {limit}"


def _wrong_socket(path: Path) -> str | None:
    longest = LONGEST_SOCKET_PATH
    return _wrong_path(path, longest, f"a Unix socket's path at most {longest}")


def _wrong_hybrid(path: Path) -> str | None:
    longest = LONGEST_SOCKET_PATH - len(LONGEST_PORT_SUFFIX)
    limit = f"a hybrid socket's path at most {longest}, as _PORT must fit behind it"
    return _wrong_path(path, longest, limit)


def _wrong_text(text: str) -> str | None:
    if len(text) > LONGEST_TEXT:
        return f"{len(text)} characters, at most {LONGEST_TEXT}"
    return None if text.isprintable() else f"{text!r} cannot be printed in one line"


def _wrong_account(name: str) -> str | None:
    """A name that chown(1) takes, or a number below 2**32 - 1, which means none."""
    if name.isdecimal():
        return None if name.isascii() and int(name) < 0xFFFFFFFF else f"{name} is no id"
    is_right = re.fullmatch(r"[A-Za-z_][\w.@\\-]*\$?", name, re.ASCII)
    return None if is_right else f"{name!r} is neither a name nor a number"


def _wrong_mode(mode: str) -> str | None:
    if re.fullmatch("0?6[0246][0246]", mode, re.ASCII):
        return None
    return f"{mode!r} is no mode of a socket: octal, from 0600 to 0666"


def _wrong_poll(microseconds: int) -> str | None:
    if 0 <= microseconds <= LONGEST_POLL_US:
        return None
    return f"must be 0 to {LONGEST_POLL_US} microseconds, not {microseconds}"


def _wrong_memory_limit(gib: int) -> str | None:
    if 1 <= gib <= LARGEST_MEMORY_LIMIT_GIB:
        return None
    return f"must be 1 to {LARGEST_MEMORY_LIMIT_GIB} GiB, not {gib}"


def _wrong_buffer_limit(mib: int) -> str | None:
    if LOWEST_BUFFER_LIMIT_MIB <= mib <= HIGHEST_BUFFER_LIMIT_MIB:
        return None
    return f"must be {LOWEST_BUFFER_LIMIT_MIB} to {HIGHEST_BUFFER_LIMIT_MIB} MiB, not {mib}"


def _wrong_rate(rate: int) -> str | None:
    if rate == 0 or LOWEST_RATE <= rate <= HIGHEST_RATE:
        return None
    return f"must be 0 (no limit), or {LOWEST_RATE} to {HIGHEST_RATE}, not {rate}"


def _wrong_linger(seconds: float) -> str | None:
    if 0 < seconds <= LONGEST_LINGER_TIMEOUT:
        return None
    return f"must be above 0 and at most {LONGEST_LINGER_TIMEOUT:.0f} seconds, not {seconds:g}"


_CID_RANGE: Final = (("minimum", FIRST_GUEST_CID), ("maximum", LAST_GUEST_CID))
_MEMORY_LIMIT_RANGE: Final = (("minimum", 1), ("maximum", LARGEST_MEMORY_LIMIT_GIB))
_BUFFER_LIMIT_RANGE: Final = (
    ("minimum", LOWEST_BUFFER_LIMIT_MIB),
    ("maximum", HIGHEST_BUFFER_LIMIT_MIB),
)
_RATE_RANGE: Final = (("minimum", 0), ("maximum", HIGHEST_RATE))
_ABSOLUTE: Final = (("pattern", "^/"),)

Name = Annotated[str, Rule(_wrong_name)]
Group = Annotated[str, Rule(_wrong_group, "group")]
GuestCid = Annotated[int, Rule(_wrong_cid, "CID", _CID_RANGE)]
Alias = Annotated[int, Rule(_wrong_cid, "alias", _CID_RANGE)]
Text = Annotated[str, Rule(_wrong_text, json_schema=(("maxLength", LONGEST_TEXT),))]
User = Annotated[str, Rule(_wrong_account, "user")]
SocketGroup = Annotated[str, Rule(_wrong_account, "group")]
SocketMode = Annotated[str, Rule(_wrong_mode, "mode", (("pattern", "^0?6[0246][0246]$"),))]
SocketPath = Annotated[Path, Rule(_wrong_socket, json_schema=_ABSOLUTE)]
HybridPath = Annotated[Path, Rule(_wrong_hybrid, json_schema=_ABSOLUTE)]


def _too_many(aliases: tuple[int, ...]) -> str | None:
    return None if len(aliases) <= MOST_ALIASES else f"at most {MOST_ALIASES}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestSpec:
    """One guest as somebody wants it.

    If `socket` is None, it is `guests/NAME.sock` in the runtime directory. `hybrid` is the path of a hybrid
    socket, True for `guests/NAME.vsock`, and None or False for none. With `memory_slots`, QEMU sends memory
    regions one by one, and does not send them again to a restarted switch: a reboot of the guest then no
    longer brings its vsock device back. `socket_user`, `socket_group` and `socket_mode` say who may connect to
    `socket` and `hybrid` (as SocketUser= and the like of systemd.socket(5)), for a VMM of another user. Without
    `file_memory`, guest memory must be in tmpfs (as a memfd is) or hugetlbfs, because all guests wait while the
    switch reads a page from anywhere else. `host_aliases` exist for software for Nitro enclaves, which connects to
    its parent as CID 3.
    """

    name: Annotated[Name, About("Its name, which stands for its CID in addresses.", is_fixed=True)]
    cid: Annotated[
        GuestCid,
        About(
            "Its context id.",
            "The new CID, as when it migrates. Connections of the guest end, its listeners go on.",
        ),
    ]
    groups: Annotated[
        tuple[Group, ...],
        About(
            "Guests that share a group may talk to each other.",
            "The groups from now on, in place of those it has. Its connections go on.",
        ),
    ] = ()
    socket: Annotated[
        SocketPath | None,
        About(
            "Where its VMM connects (else guests/NAME.sock in the switch's directory).",
            is_fixed=True,
        ),
    ] = None
    hybrid: Annotated[
        HybridPath | bool | None,
        About(
            "Make a hybrid socket too (guests/NAME.vsock).",
            "A hybrid socket (guests/NAME.vsock), or none, from now on.",
        ),
    ] = None
    socket_user: Annotated[
        User | None, About("The user who owns its sockets (else the switch's).", is_fixed=True)
    ] = None
    socket_group: Annotated[
        SocketGroup | None, About("The group of its sockets (else the switch's).", is_fixed=True)
    ] = None
    socket_mode: Annotated[
        SocketMode,
        About("The permissions of its sockets: 0660 lets their group connect.", is_fixed=True),
    ] = OWN_MODE
    memory_slots: Annotated[
        bool, About("For more than 8 memory regions (hot-plug).", is_fixed=True)
    ] = False
    file_memory: Annotated[
        bool,
        About(
            "Take its memory in files on any file system; a slow one makes all guests wait.",
            is_fixed=True,
        ),
    ] = False
    memory_limit_gib: Annotated[
        int,
        Rule(_wrong_memory_limit, json_schema=_MEMORY_LIMIT_RANGE),
        About("Its memory at most, in GiB.", is_fixed=True),
    ] = MEMORY_LIMIT_GIB
    buffer_limit_mib: Annotated[
        int,
        Rule(_wrong_buffer_limit, json_schema=_BUFFER_LIMIT_RANGE),
        About(
            "What the switch keeps of what it sends to host programs that do not read, at most, in MiB."
        ),
    ] = BUFFER_LIMIT_MIB
    bytes_per_second: Annotated[
        int,
        Rule(_wrong_rate, json_schema=_RATE_RANGE),
        About("Bytes from it, and bytes to it, in a second at most (0: no limit)."),
    ] = 0
    host_aliases: Annotated[
        tuple[Alias, ...],
        Rule(_too_many, json_schema=(("maxItems", MOST_ALIASES),)),
        About("Another CID by which it reaches the host, as 3 in Nitro enclaves.", is_fixed=True),
    ] = ()
    description: Annotated[Text, About("What it is, for people.")] = ""

    def inconsistencies(self) -> Iterator[Fault]:
        """Yields the faults of fields that are valid by themselves but do not go together."""
        if self.cid in self.host_aliases:
            reason = f"{self.cid} is the guest's own CID, which its kernel never sends out"
            yield Fault("host_aliases", reason)
        if self.socket is None and not isinstance(self.hybrid, Path):
            others = {"socket_user": self.socket_user, "socket_group": self.socket_group}
            others["socket_mode"] = None if int(self.socket_mode, 8) == 0o600 else self.socket_mode
            for field in (name for name, value in others.items() if value):
                reason = "only the switch's user may enter its directory; give a `socket` elsewhere"
                yield Fault(field, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecord(GuestSpec):
    """A guest as it is. `state` is waiting (no VMM), attached (no driver yet) or running.

    `ready`, `status` and `ready_for` (seconds) are what a running guest has said of itself since it booted, on
    port `NOTIFY_PORT`; `ready` is None if it has said nothing. Only the guest knows whether it is true.
    """

    socket: Path
    hybrid: Path | None = None
    state: str
    connections: int
    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int
    errors: int
    pid: int | None = None
    program: str | None = None
    ready: bool | None = None
    status: str = ""
    ready_for: float | None = None


@dataclass(frozen=True, slots=True)
class SwitchSpec:
    """A switch as somebody wants it; docs/reference/tuning.md says what its settings do.

    `runtime_dir` is None for the user's usual one. With `sandbox`, the threads of the data plane give up
    system calls, files and privileges that they do not need; they cannot get them back while it runs
    (docs/decisions/0017-sandbox.md). The fields that are not fixed are settings (`settings`).
    """

    runtime_dir: Annotated[Path | None, About("The directory of its sockets.", is_fixed=True)] = (
        None
    )
    poll_us: Annotated[int, Rule(_wrong_poll)] = POLL_US
    linger_timeout: Annotated[float, Rule(_wrong_linger)] = LINGER_TIMEOUT
    sandbox: Annotated[bool, About("Its threads give up what they do not need.", is_fixed=True)] = (
        True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRecord:
    """The switch itself.

    `sandbox` is `on`, `partly (…)` or `off (…)`, with the reason. `counters` are the data plane's, by name.
    """

    version: str
    pid: int
    runtime_dir: str
    cid: int
    uptime: float
    sandbox: str
    guests: int
    listeners: int
    flows: int
    counters: dict[str, int]


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


def settings(switch: SwitchSpec) -> dict[str, Any]:
    """Returns the settings of a switch by name, which can change while it runs."""
    names = [name for name, field in fields_of(SwitchSpec).items() if not about(field).is_fixed]
    return {name: getattr(switch, name) for name in names}


def with_paths(guest: GuestSpec, files: RuntimeFiles) -> GuestSpec:
    """Returns the specification with a path in `hybrid` where it has True, and None where it has False."""
    usual = files.hybrid_socket(guest.name) if guest.hybrid is True else guest.hybrid
    return replace(guest, hybrid=usual or None)


def conflicts(guest: GuestSpec, others: Iterable[GuestSpec]) -> list[Fault]:
    """Returns a fault for each name, CID and path of `guest` that one of `others` already has."""
    found = []
    for other in others:
        if guest.name == other.name:
            found.append(Fault("name", f"guest {other.name} exists already, with CID {other.cid}"))
        if guest.cid == other.cid:
            found.append(Fault("cid", f"CID {other.cid} belongs to guest {other.name}"))
        found += _alias_conflicts(guest, other)
        theirs = {path for path in (other.socket, other.hybrid) if isinstance(path, Path)}
        for field, path in (("socket", guest.socket), ("hybrid", guest.hybrid)):
            if path in theirs:
                found.append(Fault(field, f"{path} is used by guest {other.name}"))
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

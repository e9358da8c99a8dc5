"""The cases that a side does not run, and the reasons. docs/reference/conformance.md has the same table for people.

A case is identified by its text, because numbers change between versions of the kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tests.conformance.match import Match

OLD_KERNEL = frozenset({"6.1"})
"""Sides whose kernel also fails these cases on its own loopback (see `--loopback --all`)."""

LINGERING = frozenset({"6.12"})
"""The same, for one case."""

OLD_UML = frozenset({"6.1.176"})
"""The kernel of Debian 12's User-Mode Linux: the same, for one case more than others of 6.1 (6.1.192 passes it)."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A case that a kind of side cannot run in one of the roles.

    A kind is "host", or a kernel's version; "6.1" means each of 6.1.
    """

    kinds: frozenset[str]
    role: Literal["client", "server"]
    case: str
    reason: str


HOST = frozenset({"host"})
"""The host of a switch, where the kernel sees a Unix socket."""

_NO_ERRORS = "Linux 6.1 returns ENOMEM for every error of send and recv"
_NO_SIGNAL = "Linux 6.1 sends no SIGPIPE for AF_VSOCK"
_NO_ZEROCOPY = "Linux 6.1 has no MSG_ZEROCOPY for AF_VSOCK"

_NO_RETRY = "Linux 6.1.176 fails each connect of a socket whose first one was refused"

_LINGERS = "Linux 6.12 lingers in close() although its own unread data resets the connection"

_NO_LOW_WATER = "poll of a Unix socket ignores SO_RCVLOWAT"
_NO_PINNED_PAGES = "MSG_ZEROCOPY concerns pages of a kernel that itself sends AF_VSOCK packets"
_OWN_BUFFER = "data in flight is bounded by the other side's buffer and a Unix socket's, not by the sender's own buffer (H3)"
_UNIX_BUFFER = (
    "data in the Unix socket of a program counts as received before the program has read it (D5)"
)

_ZEROCOPY_CASES = (
    "SOCK_STREAM MSG_ZEROCOPY",
    "SOCK_SEQPACKET MSG_ZEROCOPY",
    "SOCK_STREAM MSG_ZEROCOPY leak MSG_ERRQUEUE",
    "SOCK_STREAM MSG_ZEROCOPY leak completion skb",
    "SOCK_STREAM virtio MSG_ZEROCOPY coalescence corruption",
)
_ZEROCOPY_SERVER = "SOCK_STREAM accept()ed socket custom setsockopt()"

SKIPS = (
    Skip(OLD_KERNEL, "server", "SOCK_SEQPACKET invalid receive buffer", _NO_ERRORS),
    Skip(OLD_KERNEL, "client", "SOCK_SEQPACKET big message", _NO_ERRORS),
    Skip(OLD_KERNEL, "client", "SOCK_STREAM test invalid buffer", _NO_ERRORS),
    Skip(OLD_KERNEL, "client", "SOCK_SEQPACKET test invalid buffer", _NO_ERRORS),
    Skip(
        OLD_KERNEL,
        "server",
        "SOCK_SEQPACKET MSG_PEEK",
        "Linux 6.1 has no MSG_PEEK for SOCK_SEQPACKET",
    ),
    Skip(OLD_KERNEL, "client", "SOCK_STREAM SHUT_WR", _NO_SIGNAL),
    Skip(OLD_KERNEL, "client", "SOCK_STREAM SHUT_RD", _NO_SIGNAL),
    *(Skip(OLD_KERNEL, "client", case, _NO_ZEROCOPY) for case in _ZEROCOPY_CASES),
    Skip(OLD_KERNEL, "server", _ZEROCOPY_SERVER, _NO_ZEROCOPY),
    Skip(
        OLD_KERNEL,
        "server",
        "SOCK_STREAM virtio credit update + SO_RCVLOWAT",
        "Linux 6.1 sends no CREDIT_UPDATE when SO_RCVLOWAT is set",
    ),
    Skip(LINGERING, "client", "SOCK_STREAM SO_LINGER close() on unread", _LINGERS),
    Skip(OLD_UML, "client", "SOCK_STREAM retry failed connect()", _NO_RETRY),
    Skip(HOST, "client", "SOCK_STREAM poll() + SO_RCVLOWAT", _NO_LOW_WATER),
    Skip(HOST, "server", "SOCK_STREAM virtio credit update + SO_RCVLOWAT", _NO_LOW_WATER),
    Skip(HOST, "server", "SOCK_STREAM virtio credit update + low rx_bytes", _NO_LOW_WATER),
    *(Skip(HOST, "client", case, _NO_PINNED_PAGES) for case in _ZEROCOPY_CASES),
    Skip(HOST, "server", _ZEROCOPY_SERVER, _NO_PINNED_PAGES),
    Skip(HOST, "client", "SOCK_STREAM TX credit bounds", _OWN_BUFFER),
    Skip(HOST, "server", "SOCK_STREAM TX credit bounds", _UNIX_BUFFER),
)


def skipped(match: Match, cases: Mapping[int, str]) -> set[int]:
    """The numbers of the cases that this match does not play."""
    kinds = {"client": match.client.kind, "server": match.server.kind}
    names = {skip.case for skip in SKIPS if _is_one_of(kinds[skip.role], skip.kinds)}
    return {number for number, name in cases.items() if name in names}


def _is_one_of(kind: str, kinds: frozenset[str]) -> bool:
    return any(kind == it or kind.startswith(f"{it}.") for it in kinds)

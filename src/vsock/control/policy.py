"""Who may talk to whom: parties in, verdict with its reason out.

Pure. The data plane applies the same rule to every connection; here it is said once more in
words, so that a person can ask why. Today there is one rule: each may talk to itself, the host and a
guest may, and two guests may if they share a group.
"""

from dataclasses import dataclass
from typing import Final

from vsock.address import CID_HOST

__all__ = ["HOST", "Party", "Verdict", "decide"]


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a flow as the policy sees it."""

    name: str
    cid: int
    groups: frozenset[str] = frozenset()


HOST: Final = Party("host", CID_HOST)
"""The machine the switch runs on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allowed or not, which rule said so, and why."""

    is_allowed: bool
    rule: str
    reason: str


def decide(source: Party, destination: Party) -> Verdict:
    """May `source` open a connection to `destination`?"""
    if source.cid == destination.cid:
        return Verdict(True, "self", f"{source.name} reaches itself without asking")
    if CID_HOST in (source.cid, destination.cid):
        return Verdict(True, "host", "the host and a guest may talk")
    shared = sorted(source.groups & destination.groups)
    pair = f"{source.name} and {destination.name}"
    if shared:
        return Verdict(True, "group", f"{pair} share the group {shared[0]}")
    return Verdict(False, "default", f"{pair} share no group; give both the same one")

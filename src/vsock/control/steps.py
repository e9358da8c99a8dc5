"""The steps from the guests that a switch has to those it should have. Pure.

SIGHUP takes them: removals first, so that a name, a CID or a path can pass from one guest to another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vsock.control.model import GuestSpec, conflicts
from vsock.control.schema import about, settings

__all__ = ["Add", "Change", "Remove", "Step", "steps"]

_FIXED = [name for name, field in settings(GuestSpec).items() if about(field).is_fixed]


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
    """Step: change a guest while it runs; its attachment stays."""

    before: GuestSpec
    guest: GuestSpec


Step = Add | Remove | Change


def steps(wanted: Iterable[GuestSpec], actual: Iterable[GuestSpec]) -> list[Step]:
    """The steps from `actual` to `wanted`; guests that stay as they are take none.

    A guest whose entry differs in nothing that its front end has been told keeps its attachment.
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
    if any(getattr(before, name) != getattr(after, name) for name in _FIXED):
        return False
    return not conflicts(after, [other for other in others if other.name != before.name])

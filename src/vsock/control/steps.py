"""Computes the steps from the guests that a switch has to the guests that it should have. Pure.

The daemon takes these steps on SIGHUP. Removals come first, so that a name, a CID or a path can pass from
one guest to another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from vsock.control.model import GuestSpec, conflicts
from vsock.control.schema import about, fields_of

__all__ = ["Add", "Change", "Remove", "Step", "steps"]

_FIXED = [name for name, field in fields_of(GuestSpec).items() if about(field).is_fixed]


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
    """Step: change a guest while it runs, so that it keeps its attachment."""

    before: GuestSpec
    guest: GuestSpec


Step = Add | Remove | Change


def steps(wanted: Iterable[GuestSpec], actual: Iterable[GuestSpec]) -> list[Step]:
    """Returns the steps from `actual` to `wanted`; an unchanged guest needs none.

    If only fields have changed that can change at run time, the guest keeps its attachment.
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
    """Whether a guest can become `after` while it runs: no other guest may still have its CID or a path."""
    if any(getattr(before, name) != getattr(after, name) for name in _FIXED):
        return False
    return not conflicts(after, [other for other in others if other.name != before.name])

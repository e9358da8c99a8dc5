"""Specifications: faults, collisions, and the steps from old to new."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsock.control.model import GuestSpec, conflicts
from vsock.control.schema import faults
from vsock.control.steps import Add, Change, Remove, steps

ALPHA = GuestSpec(name="alpha", cid=3)


@pytest.mark.parametrize(
    "name", ["host", "local", "any", "hypervisor", "3", "", "a b", "é", "x" * 64]
)
def test_name_that_cannot_be_addressed_is_a_fault(name: str) -> None:
    """A name stands before the colon of an address, so it must not be anything else."""
    assert [fault.field for fault in faults(GuestSpec(name=name, cid=3))] == ["name"]


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 2**32 - 1, 2**32])
def test_cid_that_is_no_guests_is_a_fault(cid: int) -> None:
    """Reserved CIDs are not valid for guests."""
    assert [fault.field for fault in faults(GuestSpec(name="a", cid=cid))] == ["cid"]


def test_every_fault_of_a_guest_is_found() -> None:
    """The first fault does not hide the others."""
    spec = GuestSpec(
        name="", cid=0, groups=("ok", "not ok"), socket=Path("rel"), hybrid=Path("/a\0b")
    )
    assert [fault.field for fault in faults(spec)] == ["name", "cid", "groups", "socket", "hybrid"]


def test_one_guests_socket_is_not_anothers_hybrid_socket() -> None:
    """Two kinds of sockets still cannot share a path."""
    one = GuestSpec(name="one", cid=3, socket=Path("/run/x"))
    two = GuestSpec(name="two", cid=4, hybrid=Path("/run/x"))
    assert [fault.field for fault in conflicts(two, [one])] == ["hybrid"]


def test_unlike_guests_do_not_collide() -> None:
    """Two guests without paths of their own have none in common."""
    assert conflicts(ALPHA, [GuestSpec(name="beta", cid=4)]) == []


def test_changed_guest_gives_its_cid_up_before_anything_is_added() -> None:
    """A CID can pass from one guest to another in one change of the file."""
    moved = GuestSpec(name="alpha", cid=4)
    other = GuestSpec(name="beta", cid=3)
    assert steps([other, moved], [ALPHA]) == [Change(ALPHA, moved), Add(other)]


@pytest.mark.parametrize(
    ("changed", "stays"),
    [
        ({"groups": ("lab",)}, True),
        ({"cid": 9, "groups": ("lab",)}, True),
        ({"memory_slots": True}, False),
        ({"file_memory": True}, False),
        ({"memory_limit_gib": 2}, False),
        ({"socket": Path("/run/x")}, False),
        ({"socket": Path("/run/x"), "socket_group": "kvm"}, False),
        ({"hybrid": Path("/run/x")}, True),
        ({"description": "Ada's"}, True),
        ({"bytes_per_second": 1 << 20}, True),
        ({"buffer_limit_mib": 16}, True),
    ],
)
def test_attachment_stays_where_its_front_end_need_not_know(
    changed: dict[str, Any], stays: bool
) -> None:
    """F3: a change of groups or CID does not detach a running guest."""
    new = replace(ALPHA, **changed)
    wanted = [Change(ALPHA, new)] if stays else [Remove(ALPHA), Add(new)]
    assert steps([new], [ALPHA]) == wanted


def test_guests_that_exchange_cids_are_removed_first() -> None:
    """A CID must be free before another guest gets it."""
    beta = GuestSpec(name="beta", cid=4)
    wanted = [replace(ALPHA, cid=4), replace(beta, cid=3)]
    assert steps(wanted, [ALPHA, beta]) == [
        *map(Remove, (ALPHA, beta)),
        *map(Add, wanted),
    ]


GUESTS = st.lists(
    st.builds(
        GuestSpec,
        name=st.sampled_from(["a", "b", "c", "d"]),
        cid=st.integers(3, 6),
        groups=st.sampled_from([(), ("lab",)]),
    ),
    unique_by=(lambda guest: guest.name, lambda guest: guest.cid),
)


@given(GUESTS, GUESTS)
def test_steps_lead_from_actual_to_wanted(wanted: list[GuestSpec], actual: list[GuestSpec]) -> None:
    """Whatever the two states are, the steps never collide and end at the wanted one."""
    now = list(actual)
    for step in steps(wanted, actual):
        if isinstance(step, Remove):
            now.remove(step.guest)
        else:
            if isinstance(step, Change):
                now.remove(step.before)
            assert conflicts(step.guest, now) == []
            now.append(step.guest)
    assert {guest.name: guest for guest in now} == {guest.name: guest for guest in wanted}


@given(GUESTS)
def test_steps_of_no_change_are_none(guests: list[GuestSpec]) -> None:
    """Guests that stay as they are keep their flows."""
    assert steps(guests, guests) == []

"""Schemas: one reader for all origins, all faults at once, and the JSON schema for other programs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsock.control.model import GuestRecord, GuestSpec
from vsock.control.schema import (
    About,
    Fault,
    Rule,
    SchemaError,
    checked,
    faults,
    fields_of,
    from_json,
    read,
    read_changes,
)


def wrong_size(size: int) -> str | None:
    """A rule."""
    return None if size < 10 else f"{size} is too many"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """Every kind of field."""

    label: Annotated[str, About("What is on it.", is_fixed=True)]
    size: Annotated[int, Rule(wrong_size)] = 1
    weight: float = 0.5
    is_open: bool = False
    place: Path | None = None
    lid: Path | bool | None = None
    parts: tuple[Annotated[str, Rule(lambda part: part[5:] and "long", "part")], ...] = ()

    def inconsistencies(self) -> Iterator[Fault]:
        """Fields that do not go together."""
        if self.is_open and self.lid:
            yield Fault("lid", "an open box has none")


def reasons(**values: object) -> list[str]:
    """The faults of a box, as they are printed."""
    with pytest.raises(SchemaError) as caught:
        read(Box, values)
    return [str(fault) for fault in caught.value.faults]


def test_values_get_the_forms_of_their_fields() -> None:
    """Lists become tuples, text becomes a path where one is meant, and a whole number is a number."""
    box = read(Box, {"label": "a", "weight": 2, "place": "/x", "lid": True, "parts": ["b", "c"]})
    assert box == Box(label="a", weight=2.0, place=Path("/x"), lid=True, parts=("b", "c"))
    assert read(Box, {"label": "a", "place": "", "lid": "/x"}).lid == Path("/x")
    assert read(Box, {"label": "a", "place": ""}).place is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"size": True}, "size must be a whole number, not True"),
        ({"size": 1.0}, "size must be a whole number, not 1.0"),
        ({"size": 10}, "size: 10 is too many"),
        ({"weight": "1"}, "weight must be a number, not '1'"),
        ({"is_open": 1}, "is_open must be true or false, not 1"),
        ({"place": True}, "place must be a path, not True"),
        ({"lid": 3}, "lid must be true, false or a path, not 3"),
        ({"parts": "ab"}, "parts must be a list, not 'ab'"),
        ({"parts": ["a", 5]}, "part 5 is not a string"),
        ({"parts": ["longer"]}, "parts: long"),
        ({"lable": "x"}, "unknown key lable: did you mean label?"),
        ({"is_open": True, "lid": True}, "lid: an open box has none"),
    ],
)
def test_fault_is_told_in_one_sentence(values: dict[str, object], reason: str) -> None:
    """The same sentence for every origin of the value."""
    assert reasons(**({"label": "a"} | values)) == [reason]


def test_all_faults_come_at_once_in_the_order_of_the_fields() -> None:
    """A missing field is a fault too."""
    assert reasons(other=1, parts=[1], size=11) == [
        "label: Field required",
        "size: 11 is too many",
        "part 1 is not a string",
        "unknown key other: known: label, size, weight, is_open, place, lid, parts",
    ]


def test_changes_are_those_that_can_be_made_while_it_runs() -> None:
    """None means no change; a fixed field is as unknown as a missing one."""
    assert read_changes(Box, {"size": 3, "lid": False, "weight": None}) == {"size": 3, "lid": False}
    with pytest.raises(SchemaError, match="unknown key label: "):
        read_changes(Box, {"label": "b"})


def test_record_that_a_program_made_is_checked_by_the_same_rules() -> None:
    """Its values get the same types."""
    made: Any = Box(label="a", parts=["b"], place="/x")  # type: ignore[arg-type] # on purpose
    assert checked(made) == Box(label="a", parts=("b",), place=Path("/x"))
    assert [fault.field for fault in faults(Box(label="a", size=12))] == ["size"]


GUESTS = st.builds(
    GuestSpec,
    name=st.sampled_from(["a", "b"]),
    cid=st.integers(3, 6),
    groups=st.sampled_from([(), ("lab",)]),
    hybrid=st.sampled_from([None, Path("/run/x")]),
    host_aliases=st.sampled_from([(), (7, 8)]),
)


@given(GUESTS)
def test_guest_comes_back_from_json_as_it_went(guest: GuestSpec) -> None:
    """With all fields of its specification."""
    said = {
        name: [*value] if isinstance(value := getattr(guest, name), tuple) else value
        for name in fields_of(GuestSpec)
    }
    said = {name: str(value) if isinstance(value, Path) else value for name, value in said.items()}
    counts = dict.fromkeys(fields_of(GuestRecord).keys() - fields_of(GuestSpec).keys(), 0)
    record = from_json(GuestRecord, {**said, **counts, "colour": "blue"})
    assert read(GuestSpec, {name: getattr(record, name) for name in fields_of(GuestSpec)}) == guest

"""Frozen dataclasses as schemas: reads one from values of any origin, and reports every fault at once.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class GuestSpec:
        cid: Annotated[int, Rule(wrong_cid), About("Its context id.")]

A table of a file, the body of a request and the keywords of a call all go through `read`, so a field is
described once: its type, its rules and what it is for. Field types are str, int, float, bool and Path,
unions of Path, bool and None, and tuples of one of these. Pure, and without pydantic, which costs a
command line tool more time than everything else it imports; pydantic asks `Rule` and `About` for their
part of a JSON schema by a method name, so the API's document has them too.
"""

import difflib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from vsock.errors import UsageError

__all__ = [
    "About",
    "Fault",
    "Rule",
    "SchemaError",
    "about",
    "checked",
    "faults",
    "from_json",
    "item_of",
    "kinds_of",
    "read",
    "read_changes",
    "settings",
    "unknown",
]

_T = TypeVar("_T")

_WORDS: Final[dict[frozenset[type], str]] = {
    frozenset({str}): "a string",
    frozenset({int}): "a whole number",
    frozenset({float}): "a number",
    frozenset({bool}): "true or false",
    frozenset({tuple}): "a list",
    frozenset({Path}): "a path",
    frozenset({Path, bool}): "true, false or a path",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a record: which field, and why.

    `is_missing`: the field is not there. `is_sentence`: the reason names the field, or an item of it, itself.
    """

    field: str
    reason: str
    is_missing: bool = False
    is_sentence: bool = False

    def __str__(self) -> str:
        if self.is_sentence:
            return self.reason
        colon = "" if self.reason.startswith("must be ") else ":"
        return f"{self.field}{colon} {self.reason}"


class SchemaError(UsageError):
    """Values that make no record; `faults` has all that is wrong with them."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint on values of the right type.

    Args:
        wrong: returns why a value cannot be, or None if it can.
        noun: what one value is called, where its field does not say it.
        json_schema: the same constraint for other programs, as far as JSON schema can say it.
    """

    wrong: Callable[[Any], str | None]
    noun: str = ""
    json_schema: tuple[tuple[str, object], ...] = ()

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), **dict(self.json_schema)}


@dataclass(frozen=True, slots=True)
class About:
    """What a field is for, and whether it can change.

    Args:
        text: one sentence for people.
        change: another one, where it means something else to change it while the thing runs.
        is_fixed: it cannot change while the thing runs.
    """

    text: str
    change: str = ""
    is_fixed: bool = False

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "description": self.text}


def read(kind: type[_T], values: Mapping[str, object]) -> _T:
    """The record of `kind` that `values` describe; lists become tuples, and text becomes paths.

    A dataclass whose fields constrain each other has a method `inconsistencies`, which is asked once
    each field alone is right.

    Raises:
        SchemaError: with every fault.
    """
    made, found = _read(settings(kind), values)
    found += [
        Fault(name, "Field required", is_missing=True)
        for name, field in settings(kind).items()
        if name not in values and field.default is MISSING
    ]
    if not found:
        record = kind(**made)
        inconsistencies: Callable[[], Iterator[Fault]] = getattr(record, "inconsistencies", _none)
        found = list(inconsistencies())
        if not found:
            return record
    order = [*settings(kind)]
    raise SchemaError(sorted(found, key=lambda fault: (*order, fault.field).index(fault.field)))


def read_changes(kind: type, values: Mapping[str, object]) -> dict[str, Any]:
    """The fields in `values`, of those that may change while the thing runs; None is no change.

    Raises:
        SchemaError: with every fault.
    """
    wanted = {name: value for name, value in values.items() if value is not None}
    able = {name: field for name, field in settings(kind).items() if not about(field).is_fixed}
    made, found = _read(able, wanted)
    if found:
        raise SchemaError(found)
    return made


def checked(record: _T) -> _T:
    """The same record, with its values in the forms that `read` gives them. Raises SchemaError."""
    return read(type(record), {name: getattr(record, name) for name in settings(type(record))})


def faults(record: object) -> list[Fault]:
    """Everything that is wrong with a record, looked at alone."""
    try:
        checked(record)
    except SchemaError as error:
        return error.faults
    return []


def from_json(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """The record in an answer, whose sender is trusted; fields that this version does not know are left out."""
    known = {name: field for name, field in settings(kind).items() if name in data}
    return kind(
        **{name: _trusted(kinds_of(field.type), data[name]) for name, field in known.items()}
    )


def settings(kind: type) -> dict[str, Field[Any]]:
    """The fields of a schema, by name."""
    return {field.name: field for field in fields(kind)}


def unknown(name: str, known: Collection[str]) -> Fault:
    """What is wrong with a key that is none of `known`, and which it may have been."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Fault(name, f"unknown key {name}: {hint}", is_sentence=True)


def about(field: Field[Any]) -> About:
    """What a field is for."""
    found = [part for part in _metadata(field.type) if isinstance(part, About)]
    return found[0] if found else About("")


def kinds_of(annotation: Any) -> dict[type, list[Rule]]:
    """The Python types that a field, or an item of one, may have, each with its rules."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    rules = [part for part in _metadata(annotation) if isinstance(part, Rule)]
    if get_origin(inner) in (Union, UnionType):
        found: dict[type, list[Rule]] = {}
        for member in get_args(inner):
            found |= {kind: [*own, *rules] for kind, own in kinds_of(member).items()}
        return found
    return {get_origin(inner) or inner: rules}


def item_of(annotation: Any) -> Any:
    """The annotation of the items of a tuple; None if it is none."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_args(inner)[0] if get_origin(inner) is tuple else None


def _read(
    known: Mapping[str, Field[Any]], values: Mapping[str, object]
) -> tuple[dict[str, Any], list[Fault]]:
    made: dict[str, Any] = {}
    found: list[Fault] = []
    for name, value in values.items():
        if name in known:
            made[name], wrong = _value(known[name], value)
            found += wrong
        else:
            found.append(unknown(name, known))
    return made, found


def _value(field: Field[Any], value: object) -> tuple[Any, list[Fault]]:
    """`value` as the field has it, and what is wrong with it."""
    kinds, item = kinds_of(field.type), item_of(field.type)
    if item is not None and isinstance(value, list | tuple):
        return _items(field, kinds_of(item), value)
    try:
        made = _typed(kinds, value)
    except TypeError:
        return None, [Fault(field.name, f"must be {_words(kinds)}, not {value!r}")]
    return made, [Fault(field.name, reason) for reason in _wrong(kinds, made)]


def _items(
    field: Field[Any], kinds: Mapping[type, list[Rule]], values: Sequence[object]
) -> tuple[Any, list[Fault]]:
    items, found = [], []
    for value in values:
        try:
            items.append(made := _typed(kinds, value))
        except TypeError:
            nouns = [rule.noun for rules in kinds.values() for rule in rules]
            reason = f"{' '.join(filter(None, nouns))} {value!r} is not {_words(kinds)}".lstrip()
            found.append(Fault(field.name, reason, is_sentence=True))
        else:
            found += [Fault(field.name, reason) for reason in _wrong(kinds, made)]
    whole = _wrong(kinds_of(field.type), tuple(items))
    return tuple(items), found + [Fault(field.name, reason) for reason in whole]


def _typed(kinds: Mapping[type, object], value: object) -> Any:
    """`value` in the form that one of the types has; TypeError if it has none."""
    if value is None and NoneType in kinds:
        return None
    # In Python True is a number; in a file or a request it is a mistake.
    if isinstance(value, bool):
        if bool in kinds:
            return value
    elif int in kinds and isinstance(value, int):
        return value
    elif float in kinds and isinstance(value, int | float):
        return float(value)
    elif str in kinds and isinstance(value, str):
        return value
    elif Path in kinds and isinstance(value, str | os.PathLike):
        path = os.fsdecode(value)
        return Path(path) if path or NoneType not in kinds else None
    raise TypeError


def _words(kinds: Mapping[type, object]) -> str:
    return _WORDS[frozenset(kinds) - {NoneType}]


def _wrong(kinds: Mapping[type, list[Rule]], value: object) -> list[str]:
    """What the rules say against `value`, which has one of the types."""
    found = [
        rule.wrong(value)
        for kind, rules in kinds.items()
        for rule in rules
        if isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
    ]
    return [reason for reason in found if reason]


def _trusted(kinds: Mapping[type, object], value: Any) -> Any:
    """`value` with what JSON has no type for in its own type again."""
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in kinds else value


def _metadata(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _none() -> Iterator[Fault]:
    yield from ()

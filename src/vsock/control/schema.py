"""Reads frozen dataclasses from mappings, checks them, and reports all faults together.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class GuestSpec:
        cid: Annotated[int, Rule(wrong_cid), About("Its context id.")]

A table of a config file, the body of a request and the keywords of a call are all read by `read`. The
dataclass describes each field once: its type, its rules and its purpose. Field types are str, int, float,
bool and Path, unions of Path, bool and None, and tuples of one of these.

This module is pure and does not import pydantic, which would double the start-up time of a command. When
FastAPI describes a body, pydantic calls `__get_pydantic_json_schema__` of `Rule` and `About`, so the
OpenAPI document has the rules and purposes too.
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
    "fields_of",
    "from_json",
    "item_of",
    "read",
    "read_changes",
    "types_of",
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
    """One fault of a record: a field, and what is wrong with it.

    `is_missing` means that the field is required and absent. `is_sentence` means that the reason already
    names the field or an item of it.
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
    """Values that do not make a record; `faults` lists every reason."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Rule:
    """A constraint on values that have the right type.

    Args:
        wrong: returns the reason why a value is invalid, or None if it is valid.
        noun: the word for one value, if the field's name is not that word.
        json_schema: the keywords that express the constraint in a JSON schema, if any do.
    """

    wrong: Callable[[Any], str | None]
    noun: str = ""
    json_schema: tuple[tuple[str, object], ...] = ()

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), **dict(self.json_schema)}


@dataclass(frozen=True, slots=True)
class About:
    """The purpose of a field, and whether its value can change at run time.

    Args:
        text: one sentence, for help texts and the OpenAPI document.
        change: the help text of a command that changes the field, if `text` does not fit there.
        is_fixed: the value cannot change at run time.
    """

    text: str
    change: str = ""
    is_fixed: bool = False

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core_schema), "description": self.text}


def read(kind: type[_T], values: Mapping[str, object]) -> _T:
    """Returns the record of `kind` with these values, converting lists to tuples and text to paths.

    If the dataclass has a method `inconsistencies`, it is called when all fields are valid by themselves,
    and yields the faults of fields that do not go together.

    Raises:
        SchemaError: the values have faults; the error has all of them, in the order of the fields.
    """
    made, found = _read(fields_of(kind), values)
    found += [
        Fault(name, "Field required", is_missing=True)
        for name, field in fields_of(kind).items()
        if name not in values and field.default is MISSING
    ]
    if not found:
        record = kind(**made)
        inconsistencies: Callable[[], Iterator[Fault]] = getattr(record, "inconsistencies", _none)
        found = list(inconsistencies())
        if not found:
            return record
    order = [*fields_of(kind)]
    raise SchemaError(sorted(found, key=lambda fault: (*order, fault.field).index(fault.field)))


def read_changes(kind: type, values: Mapping[str, object]) -> dict[str, Any]:
    """Returns the values that differ from None, converted as by `read`, for a record that exists.

    Raises:
        SchemaError: a value has a fault, or its field does not exist or cannot change at run time.
    """
    wanted = {name: value for name, value in values.items() if value is not None}
    able = {name: field for name, field in fields_of(kind).items() if not about(field).is_fixed}
    made, found = _read(able, wanted)
    if found:
        raise SchemaError(found)
    return made


def checked(record: _T) -> _T:
    """Returns an equal record with values as `read` converts them. Raises SchemaError."""
    return read(type(record), {name: getattr(record, name) for name in fields_of(type(record))})


def faults(record: object) -> list[Fault]:
    """Returns all faults of a record that a program has made."""
    try:
        checked(record)
    except SchemaError as error:
        return error.faults
    return []


def from_json(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """Returns the record in a switch's answer, without checks; fields unknown to this version are ignored."""
    known = {name: field for name, field in fields_of(kind).items() if name in data}
    return kind(
        **{name: _trusted(types_of(field.type), data[name]) for name, field in known.items()}
    )


def fields_of(kind: type) -> dict[str, Field[Any]]:
    """Returns the fields of a schema by name."""
    return {field.name: field for field in fields(kind)}


def unknown(name: str, known: Collection[str]) -> Fault:
    """Returns the fault of a key that is not in `known`, with the key that was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return Fault(name, f"unknown key {name}: {hint}", is_sentence=True)


def about(field: Field[Any]) -> About:
    """Returns the purpose of a field."""
    found = [part for part in _metadata(field.type) if isinstance(part, About)]
    return found[0] if found else About("")


def types_of(annotation: Any) -> dict[type, list[Rule]]:
    """Returns the types that an annotation allows, each with the rules for it."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    rules = [part for part in _metadata(annotation) if isinstance(part, Rule)]
    if get_origin(inner) in (Union, UnionType):
        found: dict[type, list[Rule]] = {}
        for member in get_args(inner):
            found |= {kind: [*own, *rules] for kind, own in types_of(member).items()}
        return found
    return {get_origin(inner) or inner: rules}


def item_of(annotation: Any) -> Any:
    """Returns the annotation of a tuple's items, or None for other annotations."""
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
    """Returns the value, converted to the field's type, and its faults."""
    kinds, item = types_of(field.type), item_of(field.type)
    if item is not None and isinstance(value, list | tuple):
        return _items(field, types_of(item), value)
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
    whole = _wrong(types_of(field.type), tuple(items))
    return tuple(items), found + [Fault(field.name, reason) for reason in whole]


def _typed(kinds: Mapping[type, object], value: object) -> Any:
    """Returns the value, converted to one of the types. Raises TypeError if none fits."""
    if value is None and NoneType in kinds:
        return None
    # In Python, True is an int. In a file or a request it is a mistake.
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
    """Returns the reasons why the rules reject a value that has one of the types."""
    found = [
        rule.wrong(value)
        for kind, rules in kinds.items()
        for rule in rules
        if isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
    ]
    return [reason for reason in found if reason]


def _trusted(kinds: Mapping[type, object], value: Any) -> Any:
    """Converts what JSON has no type for: a list to a tuple, text to a path."""
    if isinstance(value, list) and tuple in kinds:
        return tuple(value)
    return Path(value) if isinstance(value, str) and Path in kinds else value


def _metadata(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _none() -> Iterator[Fault]:
    yield from ()

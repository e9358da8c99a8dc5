"""Makes command line options from the fields of a schema, so that a new field of a guest needs no code here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from vsock.control.schema import about, item_of, types_of

__all__ = ["field_options", "given", "names_of", "whole_number"]

_MOST_DIGITS: Final = 20
"""Digits of the largest number of 64 bits; the data plane takes none above."""

_F = TypeVar("_F", bound=Callable[..., Any])
_Fields = Mapping[str, Field[Any]]


def field_options(fields: _Fields, *, changing: bool = False) -> Callable[[_F], _F]:
    """Adds an option for each field to a command that makes a record, or with `changing` changes one.

    The command gets the values as keywords with the names of the fields, and passes them to `given`.
    """

    def decorate(command: _F) -> _F:
        options = [it for name in fields for it in _options(name, fields[name], changing)]
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def given(fields: _Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the options that were used. Raises click.UsageError if two exclude each other."""
    said = {}
    for name, field in fields.items():
        value = values[name]
        if values.get(f"no_{name}"):
            if value:
                one, none = names_of(name, field, changing=True)
                raise click.UsageError(f"{one} and {none} exclude each other")
            said[name] = value
        elif value is not None and value != ():
            said[name] = value
    return said


def names_of(name: str, field: Field[Any], *, changing: bool) -> list[str]:
    """Returns the names of a field's options."""
    dashed = name.replace("_", "-")
    if item_of(field.type) is None:
        return [f"--{dashed}"]
    one = dashed.removesuffix("es" if dashed.endswith("ses") else "s")
    return [f"--{one}", f"--no-{dashed}"] if changing else [f"--{one}"]


def _options(name: str, field: Field[Any], changing: bool) -> Iterator[Callable[[_F], _F]]:
    first, *others = names_of(name, field, changing=changing)
    kinds, item = types_of(field.type), item_of(field.type)
    text = about(field).change if changing and about(field).change else about(field).text
    if item is not None:
        metavar, kind = _value(item)
        text += " Repeatable."
        yield click.option(first, name, multiple=True, type=kind, metavar=metavar, help=text)
        for other in others:
            words = name.replace("_", " ")
            yield click.option(other, f"no_{name}", is_flag=True, help=f"No {words} from now on.")
    elif bool in kinds:
        flag = f"{first}/--no-{first.removeprefix('--')}" if changing else first
        yield click.option(flag, name, is_flag=True, default=None, help=text)
    else:
        metavar, kind = _value(field.type)
        yield click.option(first, name, type=kind, metavar=metavar, help=text)


def _value(annotation: Any) -> tuple[str, Any]:
    """Returns the name of an option's value in the help, and its click type."""
    kinds = types_of(annotation)
    if Path in kinds:
        return "PATH", click.Path(path_type=Path, resolve_path=True)
    if int in kinds:
        return _noun(annotation, "NUMBER"), whole_number(annotation)
    if float in kinds:
        return "NUMBER", click.FLOAT
    return _noun(annotation, "TEXT"), click.STRING


def whole_number(annotation: Any) -> Callable[[str], int]:
    """Returns a click type for decimal numbers that follow the rules of `annotation`."""
    noun = _noun(annotation, "number")

    def convert(text: str) -> int:
        # int() fails on thousands of digits; which numbers are valid is for the rules to say.
        if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
            raise click.BadParameter(f"{text!r} is no {noun}: a decimal number")
        for rule in types_of(annotation)[int]:
            if reason := rule.wrong(int(text)):
                raise click.BadParameter(reason)
        return int(text)

    return convert


def _noun(annotation: Any, otherwise: str) -> str:
    nouns = [rule.noun for rules in types_of(annotation).values() for rule in rules if rule.noun]
    return nouns[0].upper() if nouns else otherwise

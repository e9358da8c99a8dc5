"""Commands of other distributions: entry points of the group `vsock.commands`, each a click command.

`vsock` searches for them only if a word is not one of its own commands, and for the help. It imports a
command only to run it. A command that cannot be imported prints one line and exits with 1; others work.
`docs/guide/adding-a-command.md` describes how to write one.
"""

from collections.abc import Container
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "load", "look_for", "origin"]

GROUP: Final = "vsock.commands"


def look_for(taken: Container[str]) -> "tuple[dict[str, EntryPoint], list[str]]":
    """Returns the commands by name, and a warning for each command whose name is not free.

    `taken` has the names of our own commands.
    """
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    warnings = []
    for entry in entry_points(group=GROUP):
        if entry.name in taken:
            warnings.append(f"{_called(entry)} is not used: `vsock {entry.name}` is our own")
        elif entry.name in found:
            other = origin(found[entry.name])
            warnings.append(f"{_called(entry)} is not used: {other} has one of that name")
        else:
            found[entry.name] = entry
    return found, warnings


def load(entry: "EntryPoint") -> click.Command:
    """Imports a command; if that fails, returns a command that prints the reason and exits with 1."""
    try:
        command = entry.load()
    except (Exception, SystemExit) as error:  # code of another package may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _broken(entry, reason)
    if not isinstance(command, click.Command):
        return _broken(entry, f"{entry.value} is no click command")
    return command


def origin(entry: "EntryPoint") -> str:
    """Returns name and version of the distribution that has the entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "another distribution"


def _called(entry: "EntryPoint") -> str:
    return f"command {entry.name!r} of {origin(entry)}"


def _broken(entry: "EntryPoint", reason: str) -> click.Command:
    text = f"{_called(entry)} cannot be loaded: {reason}"

    def fail() -> None:
        raise click.ClickException(text)

    any_words = {
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "allow_interspersed_args": False,
    }
    return click.Command(
        entry.name, callback=fail, help=text, add_help_option=False, context_settings=any_words
    )

"""Commands that other distributions add: entry points of the group `vsock.commands`, each a click command.

They are looked for when a word is none of our own commands, and for the help; importing one waits until it
is run. One that cannot be imported fails in one line, and only itself. `docs/guide/adding-a-command.md` is
for those who write them.
"""

from collections.abc import Container
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "load", "look_for", "origin"]

GROUP: Final = "vsock.commands"


def look_for(taken: Container[str]) -> "tuple[dict[str, EntryPoint], list[str]]":
    """The commands that are installed beside us, by name, and a warning for each that cannot have its name.

    Names in `taken` are ours.
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
    """The command of an entry point; if there is none to be had, one that says why and fails."""
    try:
        command = entry.load()
    except (Exception, SystemExit) as error:  # it is somebody else's module: anything may happen
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _broken(entry, reason)
    if not isinstance(command, click.Command):
        return _broken(entry, f"{entry.value} is no click command")
    return command


def origin(entry: "EntryPoint") -> str:
    """The distribution that an entry point is of, with its version."""
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

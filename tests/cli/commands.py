"""The commands, as the program lists them: every table of commands in the tests includes new ones."""

from collections.abc import Iterator

import click

from vsock.cli.main import vsock

__all__ = ["commands"]


def commands(*path: str) -> Iterator[tuple[str, ...]]:
    """Every command as it is typed, with groups and the commands of groups."""
    found: click.Command = vsock
    for name in path:
        found = _within(found)[name]
    if path:
        yield path
    for name in _within(found):
        yield from commands(*path, name)


def _within(command: click.Command) -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {}
    context = click.Context(command)
    named = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return {name: one for name, one in named.items() if one}

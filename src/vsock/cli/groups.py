"""Groups of commands: for a mistyped command the error suggests similar names."""

from collections.abc import Sequence

import click

__all__ = ["Group"]


class Group(click.Group):
    """A click group that suggests commands for a mistyped one, as click does for options."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begin with; UsageError if there is none."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(_no_command(args[0], self.list_commands(ctx)))
        return super().resolve_command(ctx, args)


def _no_command(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=2)
    meant = f", did you mean {' or '.join(near)}?" if near else ""
    return f"no command {name!r}{meant}"

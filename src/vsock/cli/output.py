"""How commands show what they know: tables for people, JSON for programs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import click

__all__ = ["bytes_text", "plain", "print_json", "print_table", "seconds_text"]


def print_json(value: object) -> None:
    """Prints records, or lists and dictionaries of them, as JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def plain(value: object) -> Any:
    """`value` with every record in it turned into a dictionary."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table; a column name that starts with `>` is set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")  # type: ignore[arg-type] # a literal, hidden by the if
    for row in rows:
        # Text, not str: square brackets in a name must not become markup.
        table.add_row(*(Text(cell) for cell in row))
    # In a pipe there is no width to fit: a table that is cut helps no program.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table if table.row_count else f"{title}: none")


def bytes_text(count: int) -> str:
    """A number of bytes for people: 999 B, 1.5 KiB, 64.0 MiB."""
    size, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """A time for people: 0.4s, 12s, 3m05s, 2h07m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"

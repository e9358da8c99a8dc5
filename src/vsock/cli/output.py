"""Output of commands: tables for people, JSON for programs."""

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Final

import click

__all__ = [
    "bytes_text",
    "cut",
    "plain",
    "print_json",
    "print_table",
    "process_text",
    "seconds_text",
]

_LEAST: Final = 10  # minimum width of a column on a narrow terminal


def print_json(value: object) -> None:
    """Prints records, or lists and dictionaries of them, as JSON."""
    click.echo(json.dumps(plain(value), indent=2, default=str))


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
    """Prints a title and a table, one line per row; a column whose name starts with `>` is right-aligned.

    On a terminal, lines are cut to its width, beginning with the last column.
    """
    headings = [column.removeprefix(">") for column in columns]
    lines = [headings, *rows]
    if len(lines) == 1:
        click.echo(f"{title}: none")
        return
    width = shutil.get_terminal_size().columns if sys.stdout and sys.stdout.isatty() else None
    click.echo(title)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width and 2 * len(widths) + sum(widths) > width:
        widths = [min(size, max(_LEAST, width // 4)) for size in widths[:-1]] + widths[-1:]
    for line in lines:
        cells = [
            cut(cell, size).rjust(size) if column.startswith(">") else cut(cell, size).ljust(size)
            for column, cell, size in zip(columns, line, widths, strict=True)
        ]
        shown = f"  {'  '.join(cells)}".rstrip()
        click.echo(cut(shown, width) if width else shown)


def cut(text: str, width: int) -> str:
    """The text, with a sign at its end if that was cut for the width."""
    return text if len(text) <= width else f"{text[: width - 1]}{_mark()}"


def _mark() -> str:
    """The sign for text that was cut, in the terminal's encoding."""
    encoding = sys.stdout.encoding if sys.stdout else "ascii"
    return "…" if encoding.lower().startswith("utf") else "~"


def bytes_text(count: int) -> str:
    """A number of bytes for people: 999 B, 1.5 KiB, 64.0 MiB."""
    size, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def process_text(pid: int | None, program: str | None) -> str:
    """A process for people, as netstat(8) shows it; empty if there is none."""
    return f"{pid}/{program or '?'}" if pid else ""


def seconds_text(seconds: float) -> str:
    """A time for people: 0.4s, 12s, 3m05s, 2h07m."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"

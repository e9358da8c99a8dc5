"""Which line of a TOML text says a given thing.

`tomllib` forgets lines. But a text cut at a line end parses exactly when no statement is open
there, so the lines at which statements start can be found with the parser itself, whatever
multi-line strings and lists there are. That is quadratic, and only done to report a fault.
"""

import re
import tomllib

__all__ = ["line_of"]

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*("[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*[.=]""")

Place = tuple[str | int, ...]


def line_of(text: str, place: Place) -> int:
    """The line (from 1) of `place`, such as ("guest", 1, "cid"), or of the nearest thing above.

    Only what this package's config needs is told apart: tables, lists of tables, plain keys.
    """
    lines = _statement_lines(text)
    best = 1
    for length in range(1, len(place) + 1):
        best = lines.get(place[:length], best)
    return best


def _statement_lines(text: str) -> dict[Place, int]:
    found: dict[Place, int] = {}
    counts: dict[str, int] = {}
    table: Place = ()
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        header, key = _HEADER.match(line), _KEY.match(line)
        if not (header or key) or not _is_complete("".join(lines[: number - 1])):
            continue
        if header:
            name = header[2].strip("\"'")
            table = (name,)
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                found.setdefault(table, number)
                table = (name, counts[name])
            found[table] = number
        elif key:
            found.setdefault((*table, key[1].strip("\"'")), number)
    return found


def _is_complete(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True

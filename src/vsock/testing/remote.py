"""Turns a Python function into a program for a guest, and its output back into a result.

The function travels as its source text, so it must stand on its own: it imports what it needs inside
and uses nothing else of its module. Arguments and result go as JSON. What it prints before its result
can be read while it runs, for instance "listening".
"""

import inspect
import json
import textwrap
from collections.abc import Callable
from typing import Any

RESULT_MARK = "\x1eresult "
"""Begins the line that carries the result."""


def program(function: Callable[..., Any], *arguments: Any, context: type | None = None) -> str:
    """The source of a program that calls `function` with `arguments` and prints the result.

    With `context`, a class that stands on its own too, the function gets an instance of it before the
    arguments.
    """
    parts = ["from __future__ import annotations", "import json as _json"]
    if context is not None:
        parts.append(textwrap.dedent(inspect.getsource(context)))
    parts.append(textwrap.dedent(inspect.getsource(function)))
    first = f"{context.__name__}(), " if context is not None else ""
    call = f"{function.__name__}({first}*_json.loads({json.dumps(arguments)!r}))"
    parts.append(f"print({RESULT_MARK!r} + _json.dumps({call}), flush=True)")
    return "\n".join(parts) + "\n"


def result_of(stdout: str) -> Any:
    """The result in the output of such a program."""
    _, mark, rest = stdout.rpartition(RESULT_MARK)
    if not mark:
        raise ValueError(f"the program ended without a result; it said {stdout[-1000:]!r}")
    return json.loads(rest.partition("\n")[0])

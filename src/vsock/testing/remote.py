"""Turns a Python function into a program for a guest, and its output back into a result.

The function is sent as source text, so it must be self-contained: its imports are inside it, and it uses
nothing else of its module. Arguments and result are JSON. Output before the result, for instance
"listening", can be read while it runs.
"""

import inspect
import json
import textwrap
from collections.abc import Callable
from typing import Any

RESULT_MARK = "\x1eresult "
"""The beginning of the line with the result."""


def program(function: Callable[..., Any], *arguments: Any, context: type | None = None) -> str:
    """The source of a program that calls `function` with `arguments` and prints the result.

    With `context`, a self-contained class too, the function gets an instance of it before the arguments.
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

"""Runs the table in one column: `python -m tests.oracle.column NAME`, in a guest or on the host.

The last line of its output is JSON, a list of the results of `run_case`. It compares each step's
result with the expected one, but not columns with each other.
"""

import argparse
import fnmatch
import importlib
import json
import os
import platform
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.oracle.case import TABLE, Case, Deviation, NotApplicable, Since, Version
from tests.oracle.env import Env, PlainEnv

SECTIONS: Final = (
    *("creating", "addresses", "binding", "local_ports", "listening", "accepting"),
    *("connecting", "attempts", "sending", "blocked", "receiving", "transfers", "packets"),
    *(
        "shutting",
        "closing",
        "polling",
        "readiness",
        "options",
        "sizes",
        "ioctls",
        "datagrams",
        "arguments",
    ),
)
"""The modules in `cases`, in the order of kernel-semantics."""

CASE_SECONDS: Final = 12
"""Timeout of a case in seconds; a case that takes longer fails."""


class Hangs(BaseException):
    """The case took too long."""


def load_table() -> dict[str, Case]:
    """All cases."""
    for section in SECTIONS:
        importlib.import_module(f"tests.oracle.cases.{section}")
    return TABLE


def kernel_release(version: str) -> Version:
    """The release of a kernel from `uname -rv`; Debian has it in the second part."""
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", version) or re.search(
        r"(\d+)\.(\d+)\.(\d+)", version
    )
    assert found is not None, version
    return tuple(map(int, found.groups()))


def environment(column: str) -> Callable[[], Env]:
    """The function that makes an `Env` for each case of this column."""
    if column == "api":
        from tests.oracle.api_env import ApiEnv

        return ApiEnv
    release = None
    if column == "preload":
        from vsock.cli.guard import raise_guard

        raise_guard(kill=True)
    if column == "kernel":
        if not Path("/run/boot-id").exists():
            raise SystemExit("column kernel: only in a guest that vsock.testing booted")
        release = kernel_release(f"{platform.version()} {platform.release()}")
    return lambda: PlainEnv(column, release)


def run_case(case: Case, make: Callable[[], Env]) -> dict[str, Any]:
    """Run one case; returns its name, its steps, why it was skipped or aborted, and its time."""
    begun = time.monotonic()
    result: dict[str, Any] = {"name": case.name, "steps": []}
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        with make() as env:
            if env.column in case.not_in:
                raise NotApplicable(case.not_in[env.column])
            _run_steps(case, env, result["steps"])
    except NotApplicable as reason:
        result["skipped"] = str(reason)
    except (Exception, Hangs):
        result["broken"] = traceback.format_exc(limit=-3).strip()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    result["seconds"] = round(time.monotonic() - begun, 3)
    return result


def _run_steps(case: Case, env: Env, steps: list[Any]) -> None:
    running = case.body(env)
    for number, (seen, expected, *deviation) in enumerate(running, 1):
        line = running.gi_frame.f_lineno  # type: ignore[attr-defined]
        steps.append(_step(number, line, seen, expected, deviation, env))


def _step(
    number: int, line: int, seen: Any, expected: Any, deviation: Sequence[Deviation], env: Env
) -> dict[str, Any]:
    if isinstance(expected, Since):
        expected = expected.of(env.release)
    step: dict[str, Any] = {"step": number, "line": line, "seen": show(seen)}
    for entry in deviation:
        if env.column in entry.by_column:
            step["differs"] = entry.entry
            step["kernel"] = show(expected)
            expected = entry.by_column[env.column]
    if seen != expected:
        step["expected"] = show(expected)
    return step


def show(value: Any) -> str:
    """A value as text for the report; long values are cut."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"


def _stop(_: int, frame: FrameType | None) -> None:
    raise Hangs(f"more than {CASE_SECONDS} s")


def main() -> None:
    """Run the cases of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("column", choices=("kernel", "api", "preload"))
    parser.add_argument("patterns", nargs="*", default=["*"])
    chosen = parser.parse_args()
    signal.signal(signal.SIGALRM, _stop)
    make = environment(chosen.column)
    results = [
        run_case(case, make)
        for case in load_table().values()
        if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in chosen.patterns)
    ]
    json.dump(results, sys.stdout)
    print(flush=True)
    # Threads of cases that hang must not keep the column from ending.
    os._exit(0)


if __name__ == "__main__":
    main()

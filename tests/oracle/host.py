"""The two columns of this package: the table in a process of its own, with a switch of its own.

The switch has one guest, which is never started: the one that does not answer. For the column
``preload`` a seccomp filter first forbids AF_VSOCK to the process: a socket() that reaches the kernel of
this machine kills it. Only calls that the preload library handles itself succeed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.oracle.env import SILENT_CID

from vsock.switch import Switch

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 240

_BEHIND_A_FILTER: Final = """
import os, sys
from vsock.cli.guard import raise_guard
raise_guard(kill=True)
os.execv(sys.argv[1], sys.argv[1:])
"""


class ColumnFailed(Exception):  # noqa: N818 - says what happened
    """A column did not finish; the message has its last output."""


def run(column: str, patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Run the cases in the column ``api`` or ``preload``; returns the results of `tests.oracle.column`.

    Raises:
        ColumnFailed: the process that ran them died, or did not end.
    """
    with (
        tempfile.TemporaryDirectory(prefix="vsock-oracle-") as directory,
        Switch({"silent": SILENT_CID}, runtime_dir=directory),
    ):
        command = [sys.executable, "-m", "tests.oracle.column", column, *patterns]
        if column == "preload":
            run_it = [sys.executable, "-m", "vsock.cli", "run", "--runtime-dir", directory, "--"]
            command = [sys.executable, "-c", _BEHIND_A_FILTER, *run_it, *command]
        return _results(command, directory)


def _results(command: Sequence[str], runtime_dir: str) -> list[dict[str, Any]]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("VSOCK_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), kept.get("PYTHONPATH", "")])
    environment = {**kept, "VSOCK_RUNTIME_DIR": runtime_dir, "PYTHONPATH": path.rstrip(os.pathsep)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"")[-2000:].decode(errors="replace")
        raise ColumnFailed(f"did not end in {SECONDS} s\n{said}") from None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise ColumnFailed(f"ended with status {done.returncode}\n{done.stderr[-2000:]}")
    results: list[dict[str, Any]] = json.loads(lines[-1])
    return results

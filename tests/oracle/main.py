"""`make oracle`: run the table in all columns, compare, and print the differences.

The last line is ``N passed, N failed, N skipped``: one verdict for each case in each column. The exit
status is 0 only if nothing failed and every column ran.
"""

import argparse
import contextlib
import fnmatch
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.oracle import guest, host, report
from tests.oracle.case import Case
from tests.oracle.column import load_table
from tests.oracle.report import Column, Finding, Results

from vsock.testing import GuestError

COLUMNS: Final = ("kernel-6.12", "kernel-6.1", "api", "preload")
"""The first is the reference; the second shows the behaviour of older kernels."""

_ABOUT: Final = {
    "api": "vsock.socket",
    "preload": "socket.AF_VSOCK under vsock run",
}


def run_column(name: str, patterns: Sequence[str]) -> Column:
    """Run one column.

    Raises:
        GuestError, ColumnFailed: the column did not finish.
    """
    begun = time.monotonic()
    if name.startswith("kernel-"):
        about, results = guest.run(name.removeprefix("kernel-"), patterns)
    else:
        about, results = _ABOUT[name], host.run(name, patterns)
    by_case: dict[str, Results] = {result["name"]: result for result in results}
    return Column(name, about, by_case, time.monotonic() - begun)


def _run_all(names: Sequence[str], patterns: Sequence[str]) -> tuple[list[Column], list[str]]:
    columns, failures = [], []
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            columns.append(run_column(name, patterns))
        except (GuestError, host.ColumnFailed) as error:
            failures.append(f"column {name}: {error}")
    return columns, failures


def _print(
    table: dict[str, Case], columns: list[Column], findings: list[Finding], verbose: bool
) -> None:
    sections = len({name.partition(".")[0] for name in table})
    print(f"{len(table)} cases in {sections} groups")
    entries = report.numbered_entries(_differences_text())
    for entry, names in report.differences(columns).items():
        title = entries.get(entry, "?")
        print(f"difference {entry}: {title}: {len(names)} cases" + (":" if verbose else ""))
        for name in names if verbose else ():
            print(f"    {name}")
    for column in columns:
        for reason, count in report.skips(column).items():
            print(f"{column.name}: {count} skipped: {reason}")
    for finding in findings:
        print(f"FAILED {finding.case.name} ({finding.case.section}) in {finding.column}")
        print(f"    {finding.case.title}")
        for line in finding.lines:
            print(f"    {line}")
    for column in columns:
        v = column.verdicts
        counts = f"{v['passed']} passed, {v['failed']} failed, {v['skipped']} skipped"
        print(f"{column.name}: {counts} in {column.seconds:.1f} s  ({column.about})")


def _as_json(
    table: dict[str, Case], columns: list[Column], findings: list[Finding], failures: list[str]
) -> dict[str, Any]:
    return {
        "columns": {
            c.name: {"about": c.about, "seconds": round(c.seconds, 1), **c.verdicts}
            for c in columns
        },
        "not_run": failures,
        "differences": report.differences(columns),
        "failed": [
            {"case": f.case.name, "column": f.column, "why": list(f.lines)} for f in findings
        ],
        "cases": [
            {
                "name": case.name,
                "section": case.section,
                "title": case.title,
                "columns": {c.name: c.results[case.name] for c in columns},
            }
            for case in table.values()
        ],
    }


def _differences_text() -> str:
    with contextlib.suppress(FileNotFoundError):
        return report.DIFFERENCES.read_text()
    return ""


def main() -> int:
    """Run the columns of the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tests.oracle", description=__doc__)
    parser.add_argument("patterns", nargs="*", help="names of cases, with wildcards")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="which, with commas")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    parser.add_argument("-v", "--verbose", action="store_true", help="name the cases that differ")
    chosen = parser.parse_args()
    patterns = chosen.patterns or ["*"]
    table = {
        name: case
        for name, case in load_table().items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    columns, failures = _run_all(chosen.columns.split(","), patterns)
    findings = report.judge(table, columns, report.numbered_entries(_differences_text()))
    if chosen.json:
        print(json.dumps(_as_json(table, columns, findings, failures), indent=1))
    else:
        _print(table, columns, findings, chosen.verbose)
        for failure in failures:
            print(f"NOT RUN {failure}")
        total = {v: sum(c.verdicts[v] for c in columns) for v in ("passed", "failed", "skipped")}
        total["failed"] += len(failures)
        print(", ".join(f"{number} {verdict}" for verdict, number in total.items()))
    return 1 if findings or failures or not table else 0

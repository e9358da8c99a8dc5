"""Compares the columns: passed and failed cases, and intended differences.

A step that differs from the table fails. For an intended difference, the step must name an existing
entry of docs/reference/differences.md, and the result must be exactly the one given: a difference that
does not occur fails too, until it is removed from the table.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.oracle.case import Case

ROOT: Final = Path(__file__).resolve().parents[2]
DIFFERENCES: Final = ROOT / "docs/reference/differences.md"

Results = Mapping[str, Any]


@dataclass
class Column:
    """The results of one column by case, and its name."""

    name: str
    about: str
    results: dict[str, Results]
    seconds: float
    verdicts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Finding:
    """The reason why a case fails in a column; `lines` are for people."""

    case: Case
    column: str
    lines: tuple[str, ...]


def numbered_entries(text: str) -> dict[str, str]:
    """Number and subject of each row in the document of differences."""
    return dict(re.findall(r"^\| (D\d+[a-z]?) \| (.+?) \|", text, re.MULTILINE))


def judge(
    table: Mapping[str, Case], columns: list[Column], entries: Mapping[str, str]
) -> list[Finding]:
    """Count a verdict for each case in each column, and return the failures."""
    findings = []
    for case in table.values():
        for column in columns:
            result = column.results.get(case.name)
            if result is None:
                continue  # not among the requested cases
            lines = tuple(_faults(case, result, columns, column, entries))
            verdict = "failed" if lines else "skipped" if "skipped" in result else "passed"
            column.verdicts[verdict] += 1
            if lines:
                findings.append(Finding(case, column.name, lines))
    return findings


def _faults(
    case: Case, result: Results, columns: list[Column], column: Column, entries: Mapping[str, str]
) -> Iterator[str]:
    for step in result["steps"]:
        where = f"step {step['step']}, line {step['line']}"
        entry = step.get("differs")
        if entry is not None and entry not in entries:
            yield f"{where}: there is no {entry} in {DIFFERENCES.name}"
        if "expected" in step:
            because = f" ({entry}; the kernel: {step['kernel']})" if entry else ""
            yield f"{where}: saw {step['seen']}, expected {step['expected']}{because}"
            yield from _what_kernels_saw(case, step["step"], columns, column)
    if "broken" in result:
        yield f"broke off after step {len(result['steps'])}:"
        yield from (f"    {line}" for line in result["broken"].splitlines())


def _what_kernels_saw(
    case: Case, number: int, columns: list[Column], column: Column
) -> Iterator[str]:
    for other in columns:
        steps = other.results.get(case.name, {"steps": []})["steps"]
        if other is not column and other.name.startswith("kernel") and number <= len(steps):
            yield f"    {other.name} saw {steps[number - 1]['seen']}"


def differences(columns: list[Column]) -> dict[str, list[str]]:
    """The entries that the columns refer to, and the cases that do."""
    used: dict[str, set[str]] = {}
    for column in columns:
        for name, result in column.results.items():
            for step in result["steps"]:
                if "differs" in step:
                    used.setdefault(step["differs"], set()).add(name)
    return {entry: sorted(names) for entry, names in sorted(used.items(), key=_in_order)}


def _in_order(item: tuple[str, Any]) -> tuple[int, str]:
    return int(re.sub(r"\D", "", item[0])), item[0]


def skips(column: Column) -> Counter[str]:
    """Why cases were not run in this column, and how many for each reason."""
    return Counter(r["skipped"] for r in column.results.values() if "skipped" in r)

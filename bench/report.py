"""Results as JSON for programs and as Markdown for people."""

import dataclasses
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.goals import Goal
from bench.rows import Row, Spread

__all__ = ["machine", "markdown", "write"]


def machine() -> dict[str, Any]:
    """The machine on which the run was made."""
    info = Path("/proc/cpuinfo").read_text(errors="replace")
    models = [
        line.partition(":")[2].strip()
        for line in info.splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def commit(root: Path) -> str:
    """The commit, and whether the tree differs from it."""
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _row(row: Row) -> dict[str, Any]:
    values = {name: dataclasses.asdict(Spread.of(of)) for name, of in row.samples.items() if of}
    first = next(iter(row.samples))
    ratios = {
        f"{first} / {other}": dataclasses.asdict(ratio)
        for other in row.samples
        if other != first and (ratio := row.ratio(first, other))
    }
    return {
        "name": row.name,
        "unit": row.unit,
        "values": values,
        "ratios": ratios,
        "samples": {name: [round(s, 4) for s in of] for name, of in row.samples.items()},
        "failures": row.failures,
        "command": row.command,
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return "\N{EN DASH}"
    return f"{_number(spread.median)} ({_number(spread.low)}\N{EN DASH}{_number(spread.high)})"


def markdown(rows: list[Row], goals: list[Goal], about: dict[str, Any]) -> str:
    """Goals first, then every row: median, and quartiles in brackets."""
    lines = ["# Benchmark results", ""]
    lines += [f"- {key}: {value}" for key, value in about.items()]
    lines += [
        "",
        "## Goals",
        "",
        "| goal | value | to reach | | limit |",
        "| --- | ---: | --- | --- | --- |",
    ]
    marks = {True: "yes", False: "**no**", None: "not measured"}
    for goal in goals:
        value = "\N{EN DASH}" if goal.value is None else f"{goal.value:.3g}"
        limit = "" if goal.limit is None else f"{goal.limit_is}: {goal.limit:.3g}"
        lines.append(f"| {goal.name} | {value} | {goal.goal} | {marks[goal.ok]} | {limit} |")
    lines += [
        "",
        "## Figures",
        "",
        "Median, quartiles in brackets; the ratio is of the first contender.",
        "",
    ]
    for row in rows:
        first = next(iter(row.samples))
        lines += [
            f"### {row.name} ({row.unit})",
            "",
            "| contender | value | ratio |",
            "| --- | ---: | ---: |",
        ]
        for name in row.samples:
            ratio = row.ratio(first, name) if name != first else None
            shown = (
                f"{ratio.median:.2f} ({ratio.low:.2f}\N{EN DASH}{ratio.high:.2f})" if ratio else ""
            )
            value = row.failures.get(name) or _cell(row.spread(name))
            lines.append(f"| {name} | {value} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def write(out: Path, rows: list[Row], goals: list[Goal], about: dict[str, Any]) -> None:
    """Writes `latest.json` and `latest.md`."""
    out.mkdir(parents=True, exist_ok=True)
    result = {
        **about,
        "goals": [dataclasses.asdict(goal) for goal in goals],
        "rows": [_row(row) for row in rows],
    }
    (out / "latest.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (out / "latest.md").write_text(markdown(rows, goals, about) + "\n")

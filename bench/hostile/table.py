"""Rows of the table, for a terminal of 80 columns and for the documentation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.hostile.cases import CASES, USUAL, WHO, Case
from bench.hostile.judge import Played, Verdict

__all__ = ["HEAD", "NAME", "as_json", "markdown", "row", "write_between_marks"]

MIB = 1 << 20

NAME = 26
"""Width of the names of cases."""

HEAD = f"{'':{NAME}}{'p50':>6}{'p99':>6}{'mean':>6}{'bulk':>6}{'stall':>9}{'MiB':>9}{'fds':>9}"

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def _grown(played: Played, of: str) -> str:
    """How much more there was during the attack, and is afterwards."""
    before = getattr(played.before, of)
    unit = MIB if of == "memory" else 1
    during = (getattr(played.during, of) - before) // unit
    after = (getattr(played.after, of) - before) // unit
    return f"{during:+d}/{after:+d}"


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _stall(microseconds: float) -> str:
    if microseconds >= 1e6:
        return f"{microseconds / 1e6:.2f} s"
    return f"{microseconds / 1e3:.1f} ms"


def row(played: Played, verdict: Verdict) -> str:
    """The figures of one case, to be printed behind its name."""
    if played.unplayed:
        return f"{'not played: ' + played.unplayed:.51}"
    figures = (
        f"{_ratio(verdict.p50):>6}{_ratio(verdict.p99):>6}{_ratio(verdict.mean):>6}"
        f"{verdict.rate:>6.2f}{_stall(verdict.stall):>9}{_grown(played, 'memory'):>9}"
        f"{_grown(played, 'descriptors'):>9}"
    )
    return figures + (" ok" if verdict.ok else " NO")


Result = tuple[Case, Played | None, Verdict | None]


def _cells(case: Case, played: Played | None, verdict: Verdict | None) -> list[str]:
    about = [f"`{case.name}`", case.how, case.finding]
    if played is None or verdict is None or played.unplayed:
        why_not = played.unplayed if played else case.why_not()
        return [*about, *[""] * 7, f"not played: {why_not}".removesuffix(": ")]
    return [
        *about,
        _ratio(verdict.p50),
        _ratio(verdict.p99),
        _ratio(verdict.mean),
        f"{verdict.rate:.2f}",
        _stall(verdict.stall),
        _grown(played, "memory"),
        _grown(played, "descriptors"),
        "ok" if verdict.ok else "**" + "; ".join(verdict.faults) + "**",
    ]


def markdown(results: list[Result], about: dict[str, Any]) -> str:
    """A table for each kind of attacker."""
    by_name = {case.name: (played, verdict) for case, played, verdict in results}
    verdicts = [verdict for _, _, verdict in results if verdict]
    held = sum(verdict.ok for verdict in verdicts)
    lines = [f"{held} of {len(verdicts)} cases are within their limits."]
    lines += [""] + [f"- {key}: {value}" for key, value in about.items()]
    for kind, cases in CASES.items():
        lines += ["", f"### {WHO[kind]}", ""]
        lines.append("| case | how | finding | p50 | p99 | mean | bulk | stall | MiB | fds | |")
        lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
        for case in cases:
            cells = _cells(case, *by_name.get(case.name, (None, None)))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_between_marks(path: Path, text: str) -> None:
    """Replaces the table in a document."""
    old = path.read_text()
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def as_json(results: list[Result]) -> list[dict[str, Any]]:
    """All samples and verdicts."""
    return [
        {
            "name": case.name,
            "finding": case.finding,
            "limits": asdict(case.limits) if case.limits != USUAL else "usual",
            "not_played": case.why_not(),
            "played": asdict(played) if played else None,
            "verdict": asdict(verdict) if verdict else None,
        }
        for case, played, verdict in results
    ]

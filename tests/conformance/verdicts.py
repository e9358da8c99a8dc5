"""Turns the output of vsock_test into one verdict per case. Pure.

A case looks like `17 - SOCK_STREAM SHUT_RD...ok`; a failing one has an error message instead of `ok`,
and is the last: the program ends there.
"""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

_CASE = re.compile(r"^(\d+) - (.*?)\.\.\.", re.MULTILINE)
_AFTER_CASES = "All tests have been executed."
_LISTED = re.compile(r"^(\d+)\t(.+)$", re.MULTILINE)


class Outcome(enum.Enum):
    """How one case ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one case ended, and the output of the ends if it failed."""

    outcome: Outcome
    said: str = ""


def listed_cases(listing: str) -> dict[int, str]:
    """Number -> name of all cases, from the output of `vsock_test --list`."""
    return {int(number): name for number, name in _LISTED.findall(listing)}


def case_texts(output: str) -> dict[int, str]:
    """Number -> what one end printed in that case, from its whole output."""
    output = output.partition(_AFTER_CASES)[0]
    # Splits into what was before the first case, then number, name and text of each.
    parts = _CASE.split(output.partition(_AFTER_CASES)[0])[1:]
    return {int(number): text.strip() for number, text in zip(parts[::3], parts[2::3], strict=True)}


def judge(client: str, server: str) -> dict[int, Verdict]:
    """The verdict on each case that both ends have begun, from their outputs."""
    ends = {"client": case_texts(client), "server": case_texts(server)}
    begun_by_both = ends["client"].keys() & ends["server"].keys()
    return {
        case: _verdict({end: texts[case] for end, texts in ends.items()})
        for case in sorted(begun_by_both)
    }


def _verdict(texts: Mapping[str, str]) -> Verdict:
    last_lines = {text.rpartition("\n")[2] for text in texts.values()}
    if last_lines == {"ok"}:
        return Verdict(Outcome.PASSED)
    if last_lines == {"skipped"}:
        return Verdict(Outcome.SKIPPED)
    said = "; ".join(f"{end}: {text or 'nothing'}" for end, text in texts.items())
    return Verdict(Outcome.FAILED, said.replace("\n", " "))

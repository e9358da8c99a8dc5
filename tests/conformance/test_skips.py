"""The skip list, and that the documentation has it."""

from pathlib import Path

import pytest
from tests.conformance.match import Match
from tests.conformance.sides import ProcessSide
from tests.conformance.skips import SKIPS, skipped

DOCUMENT = Path(__file__).parents[2] / "docs/reference/conformance.md"
CASES = {0: "SOCK_STREAM SHUT_WR", 1: "SOCK_SEQPACKET MSG_PEEK", 2: "SOCK_STREAM bind only"}


def side(kind: str) -> ProcessSide:
    """A side that runs nothing."""
    return ProcessSide(kind, 3, [], {})


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        ("6.12", "6.12", set()),
        ("6.1", "6.12", {0}),
        ("6.12", "6.1", {1}),
        ("6.1", "6.1", {0, 1}),
        ("6.1.192", "6.12.117", {0}),
        ("7.2", "7.3", set()),
        ("host", "6.12", set()),
    ],
)
def test_skips_depend_on_side_and_role(client: str, server: str, expected: set[int]):
    """A case that a side skips in one role runs in the other."""
    assert skipped(Match(side(client), side(server)), CASES) == expected


@pytest.mark.parametrize("skip", SKIPS, ids=lambda skip: f"{skip.role}-{skip.case}")
def test_each_skip_is_documented(skip):
    """Case and reason stand in one line of the reference."""
    lines = DOCUMENT.read_text().splitlines()
    assert any(skip.case in line and skip.reason in line and skip.role in line for line in lines)

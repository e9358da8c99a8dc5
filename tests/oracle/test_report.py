"""The oracle's own rules: expectations by version of the kernel, verdicts, and intended differences."""

import errno
from typing import Any

import pytest
from tests.oracle.case import Case, NotApplicable, do, ours, since
from tests.oracle.column import kernel_release, load_table, run_case
from tests.oracle.env import Env
from tests.oracle.report import Column, judge, numbered_entries

ENTRIES = {"D7": "something is different"}


class EmptyEnv(Env):
    """An environment for cases without sockets."""

    column = "api"

    def make_socket(self, kind: int, proto: int) -> Any:
        """This environment has no sockets."""
        raise NotApplicable("no sockets here")

    def local_cid(self) -> int:
        """Any number: no case uses it."""
        return 2


def run(*steps, column="api", **not_in):
    """The verdict on a case with these steps, and the lines of the report."""
    case = Case("group.case", "1", "A case.", lambda env: iter_steps(steps, env), not_in)

    def make():
        env = EmptyEnv()
        env.column = column
        return env

    made = Column(column, "", {"group.case": run_case(case, make)}, 0.0)
    findings = judge({"group.case": case}, [made], ENTRIES)
    (verdict,) = made.verdicts
    return verdict, [line for finding in findings for line in finding.lines]


def iter_steps(steps, env):
    """Yield the steps; a callable is called with the environment for its step."""
    for step in steps:
        yield step(env) if callable(step) else step


def test_steps_that_agree_pass():
    """A case passes if all of its steps agree."""
    assert run((1, 1), ("ok", "ok")) == ("passed", [])


def test_step_that_differs_fails_and_says_what_was_seen():
    """The line names the step."""
    verdict, lines = run((1, 1), ("EINVAL", "ok"))
    assert verdict == "failed"
    assert "step 2" in lines[0]
    assert "saw EINVAL, expected ok" in lines[0]


def test_difference_that_is_meant_passes_only_as_it_is_described():
    """The result must be exactly the given one, and its entry must exist."""
    assert run(("x", "y", ours("D7", "x")))[0] == "passed"
    assert run(("y", "y", ours("D7", "x")))[0] == "failed"
    assert run(("x", "y", ours("D8", "x")))[0] == "failed"


def test_difference_of_one_column_does_not_hold_for_another():
    """The column of the kernel has no intended differences."""
    assert run(("y", "y", ours("D7", preload="x")))[0] == "passed"
    assert run(("x", "y", ours("D7", preload="x")))[0] == "failed"
    assert run(("x", "y", ours("D7", "x")), column="kernel")[0] == "failed"


def test_case_that_cannot_be_put_is_skipped_with_its_reason():
    """With the reason from the case, or from the column."""
    assert run((1, 2), api="no way")[0] == "skipped"
    assert run(lambda env: (env.socket(), 1))[0] == "skipped"


def test_case_that_breaks_off_fails():
    """An exception in a case is no result."""

    def break_off(env):
        raise OSError(errno.EIO, "broken")

    verdict, lines = run((1, 1), break_off)
    assert verdict == "failed"
    assert "broke off after step 1" in lines[0]


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (None, "new"),
        ((7, 1, 0), "new"),
        ((6, 12, 80), "new"),
        ((6, 12, 10), "old"),
        ((6, 1), "old"),
    ],
)
def test_expectation_depends_on_the_kernel(release, expected):
    """A stable kernel may have a backported change; this package always behaves as the newest kernel."""
    assert since("7.0", "new", before="old", backports=["6.12.76"]).of(release) == expected


def test_debian_release_is_that_of_its_source():
    """The name of a Debian kernel does not contain its patch level."""
    text = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16) 6.1.0-56-cloud-amd64"
    assert kernel_release(text) == (6, 1, 192)
    assert kernel_release("#1 6.18.44") == (6, 18, 44)


def test_error_is_seen_by_its_name():
    """If a number has two names, the one of the manual is used."""

    def fail():
        raise OSError(errno.EOPNOTSUPP, "")

    assert do(fail) == "EOPNOTSUPP"
    assert do(lambda: None) == "ok"


def test_entries_are_found_by_number():
    """Rows of the table in differences.md."""
    text = "| # | what |\n| --- | --- |\n| D3 | one | x |\n| D12b | two: three | y |\ntext D4\n"
    assert numbered_entries(text) == {"D3": "one", "D12b": "two: three"}


def test_table_has_cases_of_every_section():
    """Every section of kernel-semantics that can be tested from one program has cases."""
    table = load_table()
    assert len(table) >= 250
    chapters = {case.section.partition(".")[0] for case in table.values()}
    assert chapters >= {"1", "2", "3", "4", "5", "6", "7", "8", "9", "10"}

"""The judging of attacks, and the agreement of the table of cases with the attackers' sources."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench.hostile import driver, inside
from bench.hostile.arena import LOST
from bench.hostile.cases import CASES, QUICK, WHO
from bench.hostile.judge import Limits, Played, Resources, Round, Sample, judge

SOURCES = Path(__file__).parents[2] / "bench" / "hostile" / "src"

QUIET = Sample(
    p50=60.0, p99=900.0, mean=80.0, stall=9000.0, rates=(4e8, 3e8), connect=200.0, api=3000.0
)
IDLE = Resources(memory=50 << 20, descriptors=40)


def _played(*attacks: Sample, **changes: Any) -> Played:
    rounds = [Round(QUIET, attack) for attack in attacks]
    return replace(Played(rounds, IDLE, IDLE, IDLE, log=0), **changes)


def test_neighbour_as_in_the_control_run_is_well():
    """No figure is at fault when attack and control are the same."""
    verdict = judge(_played(QUIET, QUIET, QUIET), Limits())
    assert verdict.ok
    assert (verdict.p50, verdict.p99, verdict.mean, verdict.rate) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("suffered", "fault"),
    [
        ({"p50": 181.0}, "ping p50 3.0 > 3 x control"),
        ({"p99": 9100.0}, "ping p99 10.1 > 10 x control"),
        ({"mean": 500.0}, "ping mean 6.2 > 5 x control"),
        ({"rates": (1.7e8, 3e8)}, "bulk 0.42 < 0.45 of control"),
        ({"rates": (4e8, 0.0)}, "bulk 0.00 < 0.45 of control"),
        ({"stall": 300_000.0}, "stall 300 ms; control 9 ms"),
        ({"connect": 4200.0}, "connect 21.0 > 20 x control"),
        ({"api": LOST}, "control API answers in 5.0 s"),
    ],
)
def test_figure_over_its_limit_is_the_fault(suffered: dict[str, Any], fault: str):
    """Each figure alone makes its own fault, with value and limit."""
    worse = replace(QUIET, **suffered)
    assert judge(_played(worse, worse, worse), Limits()).faults == [fault]


def test_one_bad_round_of_three_is_no_fault():
    """A disturbance by others than the attacker does not decide."""
    bad = replace(QUIET, p50=LOST, p99=LOST, mean=LOST, stall=1e6, rates=(0.0, 0.0))
    assert judge(_played(QUIET, bad, QUIET), Limits()).ok
    assert not judge(_played(bad, QUIET, bad), Limits()).ok


def test_long_stall_in_one_round_of_three_is_a_fault():
    """An attack that works now and then is still one."""
    stuck = replace(QUIET, stall=3e6)
    faults = judge(_played(QUIET, stuck, QUIET), Limits()).faults
    assert faults == ["stall 3000 ms in one round"]


def test_slack_widens_all_ratios():
    """What is over a limit by less than the slack passes."""
    worse = replace(QUIET, p50=300.0, p99=15_000.0, mean=700.0, rates=(1e8, 1e8))
    assert len(judge(_played(worse), Limits()).faults) == 4
    assert judge(_played(worse), Limits(slack=2.0)).ok


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"during": Resources(180 << 20, 40)}, "memory +130 MiB"),
        ({"during": Resources(50 << 20, 2000)}, "descriptors +1960"),
        ({"during": Resources(50 << 20, 40, 64 << 40)}, "address space +64 TiB"),
        ({"after": Resources(90 << 20, 40)}, "memory afterwards +40 MiB"),
        ({"after": Resources(50 << 20, 50)}, "descriptors afterwards +10"),
        ({"log": 1 << 20}, "log 1024 KiB"),
        ({"broken": ["the switch has ended"]}, "the switch has ended"),
    ],
)
def test_what_the_switch_keeps_is_a_fault(changes: dict[str, Any], fault: str):
    """Memory, descriptors and log count beside a neighbour that is well."""
    assert judge(_played(QUIET, **changes), Limits()).faults == [fault]


def test_every_case_has_its_attack_and_every_attack_its_case():
    """The two lists agree, and no name is used twice."""
    cases = [case for kind in CASES.values() for case in kind]
    names = [case.name for case in cases]
    assert len(names) == len(set(names))
    assert set(CASES) == set(WHO)
    assert set(QUICK) <= set(names)
    in_rust: set[str] = set()
    in_guests: set[str] = set()
    for case in cases:
        if not case.skip:
            attack = (case.attack or case.name).partition(":")[0]
            (in_rust if case.by == "process" else in_guests).add(attack)
    sources = "".join(path.read_text() for path in SOURCES.glob("*.rs"))
    assert in_rust == set(re.findall(r'name: "([a-z0-9-]+)"', sources))
    assert in_guests == set(inside.ATTACKS) | set(driver.ATTACKS)


def test_table_of_the_review_is_large_enough():
    """At least 60 cases can be played, each of the review's findings about load among them."""
    cases = [case for kind in CASES.values() for case in kind if not case.skip]
    assert len(cases) >= 60
    findings = {case.finding for case in cases}
    assert {"S1", "S2", "S3", "S4", "S6", "S7", "S10", "S11", "S12", "S13", "S14"} <= findings

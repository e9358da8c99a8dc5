"""The cases as a figure of `make bench`: one round of each, with goals from the same limits."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.hostile.arena import Arena, Times
from bench.hostile.cases import QUICK, Case, playable
from bench.hostile.judge import Round, Sample, worse_rates
from bench.hostile.play import Length, Player
from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row

__all__ = ["ATTACKED", "CONTROL", "hostile", "row_name"]

ATTACKED, CONTROL = "beside the attacker", "beside a busy loop"

MIB = 1 << 20

Figure = Callable[[Sample], float]


def row_name(case: Case, figure: str) -> str:
    """The name of a case's row: `p50`, `p99` or `bulk`."""
    return f"hostile: {case.name} {figure}"


def hostile(lab: Lab, plan: Plan) -> list[Row]:
    """Plays every case once, or those of `--quick`, on a switch of its own."""
    vsock = Path(sys.executable).parent / "vsock"
    attacker = lab.load.with_name("vsock-hostile")
    length = Length(1, Times(plan.seconds, plan.seconds / 2, plan.seconds / 3))
    player = Player(partial(Arena, vsock, lab.load), attacker, length)
    rows: list[Row] = []
    try:
        for case in playable():
            if not plan.quick or case.name in QUICK:
                rows += _rows(case, player.play(case).rounds)
    finally:
        player.close()
    return rows


def _rows(case: Case, rounds: list[Round]) -> list[Row]:
    def times(of: Figure) -> dict[str, list[float]]:
        return {
            ATTACKED: [of(one.attack) for one in rounds],
            CONTROL: [of(one.control) for one in rounds],
        }

    pairs = [worse_rates(one) for one in rounds]
    bulk = {
        ATTACKED: [attack / MIB for attack, _ in pairs],
        CONTROL: [control / MIB for _, control in pairs],
    }
    p50, p99 = times(lambda sample: sample.p50), times(lambda sample: sample.p99)
    return [
        Row(row_name(case, "p50"), "µs", p50, case.how, is_less_better=True),
        Row(row_name(case, "p99"), "µs", p99, case.how, is_less_better=True),
        Row(row_name(case, "bulk"), "MiB/s", bulk, case.how),
    ]

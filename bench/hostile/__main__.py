"""Plays attacks on a running switch; see `--help`."""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

from bench.hostile import table
from bench.hostile.arena import Arena, Times
from bench.hostile.cases import CASES, QUICK, Case, with_slack
from bench.hostile.judge import judge
from bench.hostile.play import Length, Player
from bench.report import commit, machine

ROOT = Path(__file__).resolve().parent.parent.parent
TARGET = ROOT / "target" / "release"

WHOLE = Length(3, Times())
BRIEF = Length(1, Times(0.3, 0.1, 0.08))

SLACK = 4.0
"""How much more a quick run allows: one short round, on a machine that may be busy."""

PLAYS = 3
"""How often a quick run plays a case that is over a limit: what is wrong with the switch is wrong each time."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    parser.add_argument("--only", metavar="NAME[,NAME]", help="only these cases")
    parser.add_argument("--kind", choices=list(CASES), help="only the cases of this attacker")
    parser.add_argument(
        "--quick", action="store_true", help="ten cases with wider limits, for a busy machine"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--rounds", type=int, help=f"rounds of each case ({WHOLE.rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--doc", type=Path, metavar="FILE", help="replace the table in there")
    parser.add_argument("--attacker", type=Path, default=TARGET / "vsock-hostile")
    parser.add_argument("--load", type=Path, default=TARGET / "vsock-load")
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    cases = [case for kind in CASES for case in CASES[kind] if arguments.kind in (None, kind)]
    names = arguments.only.split(",") if arguments.only else QUICK if arguments.quick else None
    if names is not None:
        unknown = set(names) - {case.name for case in cases}
        if unknown:
            sys.exit(f"no such case: {', '.join(sorted(unknown))}")
        cases = [case for case in cases if case.name in names]
    return [with_slack(case, SLACK) for case in cases] if arguments.quick else cases


def _play(player: Player, cases: list[Case], plays: int) -> list[table.Result]:
    """Plays all cases, each until it is within its limits or has been played so often, and prints it."""
    results: list[table.Result] = []
    print(table.HEAD)
    for case in cases:
        if why_not := case.why_not():
            print(f"{case.name:{table.NAME}} not played: {why_not}")
            results.append((case, None, None))
            continue
        for _ in range(plays):
            print(f"{case.name:{table.NAME}}", end="", flush=True)
            played = player.play(case)
            verdict = judge(played, case.limits)
            print(table.row(played, verdict), flush=True)
            for fault in verdict.faults:
                print(f"    {fault:.75}", flush=True)
            if verdict.ok:
                break
        results.append((case, played, verdict))
    return results


def main() -> int:
    """Plays, prints, writes; 1 if a case is over its limits or could not be played."""
    arguments = _arguments()
    cases = _chosen(arguments)
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    length = BRIEF if arguments.quick else WHOLE
    if arguments.rounds:
        length = Length(arguments.rounds, length.times)
    vsock = Path(sys.executable).parent / "vsock"
    player = Player(partial(Arena, vsock, arguments.load), arguments.attacker, length)
    begin = time.monotonic()
    try:
        results = _play(player, cases, PLAYS if arguments.quick else 1)
    finally:
        player.close()
    about = {**machine(), "commit": commit(ROOT), "rounds": length.rounds}
    about["seconds"] = round(time.monotonic() - begin)
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "cases": table.as_json(results)}, indent=1))
    if arguments.doc:
        table.write_between_marks(arguments.doc, table.markdown(results, about))
    played = [(one, verdict) for _, one, verdict in results if one and verdict]
    over = sum(not verdict.ok for _, verdict in played)
    lost = sum(bool(one.unplayed) for one, _ in played)
    print(f"{over} of {len(played)} cases over a limit, {lost} not played; {about['seconds']} s")
    return 1 if over or lost else 0


if __name__ == "__main__":
    sys.exit(main())

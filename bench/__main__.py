"""Runs the benchmarks; see `--help`."""

import argparse
import shlex
import sys
import time
from functools import partial
from pathlib import Path

from bench import devices
from bench.figures import FIGURES
from bench.goals import Goal, judge
from bench.lab import Lab, MakeDevice
from bench.plan import Plan
from bench.report import commit, machine, write
from bench.rows import Row

ROOT = Path(__file__).resolve().parent.parent
VDV = ROOT / "build" / "peers" / "root" / "usr" / "bin" / "vhost-device-vsock"
VDV_COMMAND = "[--vm guest-cid={cid},socket={socket},uds-path={uds},groups=all]"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"only these of {', '.join(FIGURES)}")
    parser.add_argument(
        "--rounds", type=int, help="number of rounds; every contender is measured in each"
    )
    parser.add_argument("--seconds", type=float, help="duration of one sample")
    parser.add_argument(
        "--device",
        choices=["switch", "node"],
        default="switch",
        help="what `ours` is: `vsock switch`, or its data plane alone (quicker to rebuild)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another vhost-user-vsock device: its command with {socket} {cid} {uds}; a part in [] is repeated per guest",
    )
    parser.add_argument(
        "--no-peers", action="store_true", help="measure no other devices, even if installed"
    )
    parser.add_argument("--load", type=Path, default=ROOT / "target" / "release" / "vsock-load")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    return parser.parse_args()


def _makers(arguments: argparse.Namespace) -> dict[str, MakeDevice]:
    vsock = Path(sys.executable).parent / "vsock"
    ours = (
        partial(devices.node, arguments.load)
        if arguments.device == "node"
        else partial(devices.switch, vsock)
    )
    makers: dict[str, MakeDevice] = {"ours": ours}
    named = list(arguments.peer)
    if VDV.exists() and not arguments.no_peers:
        named.append(f"vhost-device-vsock={VDV} {VDV_COMMAND}")
    for peer in named:
        name, _, command = peer.partition("=")
        makers[name] = partial(devices.peer, name, command)
    return makers


def _print(row: Row) -> None:
    print(f"{row.name} ({row.unit})")
    first = next(iter(row.samples))
    for name in row.samples:
        spread = row.spread(name)
        ratio = row.ratio(first, name) if name != first else None
        value = (
            f"{spread.median:12,.2f}  {spread.low:10,.2f} - {spread.high:10,.2f}"
            if spread
            else row.failures.get(name, "-")
        )
        print(f"  {name:28} {value}" + (f"   {ratio.median:6.2f}" if ratio else ""), flush=True)


def _print_goals(goals: list[Goal]) -> None:
    for goal in goals:
        if goal.value is not None:
            limit = "" if goal.limit is None else f"   ({goal.limit_is}: {goal.limit:.3f})"
            mark = "ok" if goal.ok else "NO"
            print(f"{mark:3} {goal.name:50} {goal.value:8.3f}  {goal.goal:7}{limit}")


def main() -> int:
    """Measures, prints, writes."""
    arguments = _arguments()
    quick = arguments.quick
    plan = Plan(
        rounds=arguments.rounds or (4 if quick else 15),
        seconds=arguments.seconds or (0.12 if quick else 0.3),
        quick=quick,
    )
    names = arguments.only.split(",") if arguments.only else list(FIGURES)
    about = {
        "machine": machine(),
        "commit": commit(ROOT),
        "command": shlex.join(sys.orig_argv),
        "quick": quick,
    }
    rows: list[Row] = []
    start = time.monotonic()
    with Lab(arguments.load, _makers(arguments)) as lab:
        for name in names:
            for row in FIGURES[name](lab, plan):
                _print(row)
                rows.append(row)
        goals = judge(rows, lab.peers)
    about["load_average_after"] = machine()["load_average"]
    about["seconds"] = round(time.monotonic() - start, 1)
    write(arguments.out, rows, goals, about)
    _print_goals(goals)
    print(f"{about['seconds']} s; {arguments.out / 'latest.md'}")
    lost = [name for row in rows for name in row.failures if name.split()[0] == "ours"]
    for name in lost:
        print(f"{name} did not get through")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

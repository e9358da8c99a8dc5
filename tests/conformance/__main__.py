"""Runs the kernel's own vsock_test between Linux guests, and between a guest and the host.

    python -m tests.conformance [--runs N] [--match TEXT] [--case TEXT]

`make conformance` does this with everything it needs. The last line is `N passed, N failed, N skipped`,
counted per case, match and run; the status is 0 if none failed. docs/reference/conformance.md lists the
skipped cases with the reasons.
"""

import argparse
import asyncio
import contextlib
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from tests.conformance.match import Match
from tests.conformance.sides import GuestSide, Side, host_side
from tests.conformance.skips import skipped
from tests.conformance.verdicts import Outcome, Verdict, listed_cases

from vsock.address import CID_LOCAL
from vsock.errors import VsockError
from vsock.switch import Switch
from vsock.testing import aio

FIRST_CID = 3
GUESTS = (
    *(("6.12", "linux-6.12"), ("new", "linux-new-a"), ("new", "linux-new-b")),
    *(("6.1", "linux-6.1"), ("uml", "uml")),
)
"""Image and name of each guest that is booted."""

FIRST = "linux-new-a"
"""The side that plays against all others."""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("--suite", type=Path, default=Path("build/conformance"))
    parser.add_argument("--runs", type=int, default=1, help="play everything so often")
    parser.add_argument(
        "--loopback",
        action="store_true",
        help="each guest with itself over its kernel's own loopback",
    )
    parser.add_argument("--all", action="store_true", help="play what is usually skipped, too")
    parser.add_argument("--match", default="", help="play only matches with this in their name")
    parser.add_argument("--case", default="", help="play only cases with this in their name")
    return parser.parse_args()


def loopback_matches(guests: Iterable[GuestSide]) -> Iterator[Match]:
    """Each guest with itself, without a switch."""
    for side in guests:
        local = GuestSide(side.guest, side.kind, CID_LOCAL)
        yield Match(client=local, server=local)


def matches(sides: Iterable[Side]) -> Iterator[Match]:
    """One side against each of the others, in both roles."""
    named = {side.name: side for side in sides}
    first = named.pop(FIRST)
    for other in named.values():
        yield Match(client=first, server=other)
        yield Match(client=other, server=first)


def kind_of(release: str) -> str:
    """The kernel's version, as the skip list has it: "6.12.117" for "6.12.117+deb12-cloud-amd64"."""
    numbers = re.match(r"[0-9.]*[0-9]", release)
    assert numbers, release
    return numbers[0]


async def boot(switch: Switch, stack: contextlib.AsyncExitStack) -> dict[str, GuestSide]:
    """Boot all guests at once; they end with the stack."""

    async def boot_one(number: int, image: str, name: str) -> GuestSide:
        cid = FIRST_CID + number
        switch.add_guest(name, cid, groups=["conformance"])
        if image == "uml":
            guest: aio.LinuxGuest = aio.UmlGuest(switch, name)
        else:
            guest = aio.QemuGuest(switch, name, kernel=image)
        await stack.enter_async_context(guest)
        return GuestSide(guest, kind_of(guest.kernel_release), cid)

    async with asyncio.TaskGroup() as booting:
        tasks = [
            booting.create_task(boot_one(number, image, name))
            for number, (image, name) in enumerate(GUESTS)
        ]
    return {task.result().name: task.result() for task in tasks}


async def play(
    match: Match, cases: Mapping[int, str], left_out: Collection[int]
) -> Counter[Outcome]:
    """Play one match, print the result, and count."""
    begun = time.monotonic()
    verdicts: dict[int, Verdict] = await match.play(cases, left_out)
    count = Counter(verdict.outcome for verdict in verdicts.values())
    numbers = ", ".join(f"{count[outcome]} {outcome.value}" for outcome in Outcome)
    print(f"{match.name}: {numbers} ({time.monotonic() - begun:.1f} s)", flush=True)
    for case, verdict in sorted(verdicts.items()):
        if verdict.outcome is Outcome.FAILED:
            print(f"    {case} {cases[case]}: {verdict.said}", flush=True)
    return count


async def run(options: argparse.Namespace) -> Counter[Outcome]:
    """Boot the guests, then play all matches as often as requested."""
    total: Counter[Outcome] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        runtime_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-conformance-"))
        switch = await stack.enter_async_context(Switch(runtime_dir=runtime_dir))
        guests = await boot(switch, stack)
        static_program = (options.suite / "vsock_test.static").read_bytes()
        listings = await asyncio.gather(*(side.install(static_program) for side in guests.values()))
        cases = listed_cases(listings[0])
        left_out = {number for number, name in cases.items() if options.case not in name}
        print(f"{len(cases)} cases, {len(guests)} guests", flush=True)
        sides: list[Side] = [*guests.values(), host_side(options.suite / "vsock_test", runtime_dir)]
        played = list(loopback_matches(guests.values()) if options.loopback else matches(sides))
        for number in range(1, options.runs + 1):
            if options.runs > 1:
                print(f"run {number} of {options.runs}", flush=True)
            for match in played:
                if options.match in match.name:
                    skips = set() if options.all else skipped(match, cases)
                    total += await play(match, cases, left_out | skips)
    return total


async def main() -> int:
    """Everything, until the end or SIGTERM; returns the exit status."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    total = Counter({Outcome.FAILED: 1})
    try:
        total = await run(parse_arguments())
    except* VsockError as errors:
        for error in errors.exceptions:
            print(f"conformance: {error}", file=sys.stderr)
    except* asyncio.CancelledError:
        print("conformance: stopped", file=sys.stderr)
    print(", ".join(f"{total[outcome]} {outcome.value}" for outcome in Outcome))
    return 0 if total[Outcome.PASSED] and not total[Outcome.FAILED] else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

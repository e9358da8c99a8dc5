"""Counts the instructions of the per-packet paths (`bench/paths`) under valgrind.

Times differ from run to run, instruction counts do not. A change of more than the tolerance is a
change of the program or of the compiler, so the compiler's version is kept with the counts. The
instructions of the start are subtracted by counting two runs of different length.

`python -m bench.instructions PATHS` compares with `instructions.json`; `--update` rewrites it.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["count", "main"]

KEPT = Path(__file__).with_name("instructions.json")
TOLERANCE = 0.05
SHORT, LONG = 500, 1500


def _refs(program: Path, name: str, steps: int) -> int:
    """Instructions of a whole run."""
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command = [*tool, str(program), name, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"refs: +([\d,]+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def count(program: Path) -> dict[str, float]:
    """Instructions per packet of every path."""
    listing = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    counts = {}
    for line in listing.splitlines():
        name, packets = line.split()
        instructions = _refs(program, name, LONG) - _refs(program, name, SHORT)
        counts[name] = round(instructions / (LONG - SHORT) / int(packets), 1)
    return counts


def _compiler() -> str:
    done = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _compare(kept: dict[str, Any], counts: dict[str, float]) -> list[str]:
    """A line for each path that is out of tolerance."""
    wrong = []
    for name in sorted(kept.keys() | counts.keys()):
        before, after = kept.get(name), counts.get(name)
        if before is None or after is None:
            wrong.append(f"{name}: {'new' if before is None else 'gone'}")
            continue
        change = after / before - 1
        print(f"{name:20} {before:8.1f} -> {after:8.1f}  {change:+.1%}")
        if change > TOLERANCE:
            wrong.append(f"{name}: {change:+.1%} is more than {TOLERANCE:.0%}")
        elif change < -TOLERANCE:
            print(f"  {name} is better: keep it with make bench-instructions UPDATE=1")
    return wrong


def main() -> int:
    """Counts, and compares with the file or rewrites it."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions")
    parser.add_argument("program", type=Path, help="the built `vsock-paths`")
    parser.add_argument("--update", action="store_true", help="keep these counts")
    arguments = parser.parse_args()
    counts = count(arguments.program)
    compiler = _compiler()
    if arguments.update:
        result = {"compiler": compiler, "instructions_per_packet": counts}
        KEPT.write_text(json.dumps(result, indent=2) + "\n")
        return 0
    kept = json.loads(KEPT.read_text())
    wrong = _compare(kept["instructions_per_packet"], counts)
    if kept["compiler"] != compiler:
        print(
            f"instructions: not judged, the kept counts are of {kept['compiler']}, not {compiler}"
        )
        return 0
    for line in wrong:
        print(line)
    if wrong:
        print(f"instructions: {len(wrong)} of {len(counts)} paths are not as kept")
        print("if this is meant: make bench-instructions UPDATE=1")
        return 1
    print(f"instructions: {len(counts)} paths, none costs over {TOLERANCE:.0%} more than kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())

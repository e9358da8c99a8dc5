"""Runs targets of the Makefile one after another, also if some fail, and ends with a line for each.

    python3 tools/test_parts.py MAKE TARGET...

The output of the targets is passed on. If a target prints nothing for a few seconds, the elapsed time
is printed, as a sign that it has not hung. The exit status is 0 only if that of every target is.
"""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

QUIET_SECONDS: Final = 3.0
MOST_FAULTS_SHOWN: Final = 20
INTERRUPTED: Final = 130

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PYTEST = re.compile(r"=+ (?:.*, )?\d+ (?:passed|failed|errors?|skipped|deselected)\b.* =+")
_CARGO = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")
_INSTRUCTIONS = re.compile(r"instructions: .*")
_FAULT = re.compile(r"(?:FAILED|ERROR) .*|test .* \.\.\. FAILED|error(?:\[\w+\])?: .*")


@dataclass
class Part:
    """One target: how it ended, how long it took, and the result lines of its tests."""

    name: str
    ended: str = "not run"
    seconds: float = 0.0
    results: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def read(self, output: str) -> None:
        """Collect the lines of the output that are repeated at the end."""
        cargo = [0, 0, 0]
        for line in _COLOURS.sub("", output).splitlines():
            if counts := _CARGO.match(line):
                cargo = [
                    so_far + int(more) for so_far, more in zip(cargo, counts.groups(), strict=True)
                ]
            elif _PYTEST.fullmatch(line) or _INSTRUCTIONS.fullmatch(line):
                self.results.append(re.sub("=+", "==", line))
            elif _FAULT.fullmatch(line):
                self.faults.append(line)
        if any(cargo):
            word = "FAILED" if cargo[1] else "ok"
            counts = "{} passed; {} failed; {} ignored".format(*cargo)
            self.results.append(f"test result: {word}. {counts}")

    def lines(self, width: int) -> list[str]:
        """The lines of this part at the end of the run."""
        result = "; ".join(self.results)
        line = f"{self.name:{width}}  {self.ended:11}  {self.seconds:5.0f} s  {result}".rstrip()
        if self.ended == "passed":
            return [line]
        more = len(self.faults) - MOST_FAULTS_SHOWN
        return [
            line,
            *(f"    {fault}" for fault in self.faults[:MOST_FAULTS_SHOWN]),
            *([f"    … and {more} more"] if more > 0 else []),
        ]


def main(make: str, targets: Iterable[str]) -> int:
    """Run all; returns the exit status."""
    parts = [Part(target) for target in targets]
    signal.signal(signal.SIGTERM, _interrupt)
    status = 0
    try:
        for part in parts:
            _run(make, part)
            status |= part.ended != "passed"
    except KeyboardInterrupt:
        status = INTERRUPTED
    width = max(len(part.name) for part in parts)
    print("\n" + "\n".join(line for part in parts for line in part.lines(width)), flush=True)
    return status


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(make: str, part: Part) -> None:
    """Run one target to its end, pass its output on, and collect its results."""
    begun = time.monotonic()
    print(f"\n---- {part.name}", flush=True)
    colours = {"CARGO_TERM_COLOR": "always", "PY_COLORS": "1"} if sys.stdout.isatty() else {}
    process = subprocess.Popen(
        [*make.split(), "--no-print-directory", part.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | colours,
    )
    output = bytearray()
    try:
        _pass_on(process, output, begun)
        part.ended = "passed" if process.wait() == 0 else "FAILED"
    except KeyboardInterrupt:
        part.ended = "interrupted"
        process.terminate()
        process.wait()
        raise
    finally:
        part.seconds = time.monotonic() - begun
        part.read(output.decode(errors="replace"))


def _pass_on(process: "subprocess.Popen[bytes]", output: bytearray, begun: float) -> None:
    """Read until the target ends; later output of a daemon that it left behind is ignored."""
    assert process.stdout
    while True:
        ready, _, _ = select.select([process.stdout], [], [], QUIET_SECONDS)
        if ready:
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                return
            output += data
        elif process.poll() is not None:
            return
        else:
            end = b"\n" if output.endswith(b"\n") or not output else b""
            data = b"(%d s) " % (time.monotonic() - begun) + end
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

"""Commands in a guest and forwards to it: how long a command takes beside ssh, and what a forward costs."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.agents import AgentError
from bench.guests import PERF, CommandGuest, uml
from bench.lab import Lab
from bench.plan import Plan
from bench.real import SIZE, Measure, measure, told
from bench.rows import Row, alternate
from vsock import sockets
from vsock.transports import SwitchTransport

__all__ = ["reach"]

START_SECONDS = 60


def reach(lab: Lab, plan: Plan) -> list[Row]:
    """With User-Mode Linux."""
    from vsock import testing

    try:
        with uml(lab) as guest:
            return [_exec_row(guest, plan), *_forward_rows(guest, plan)]
    except testing.GuestError as error:
        reason = str(error).splitlines()[0]
        return [Row("reach", "", {"ours": []}, "vsock.testing", {"ours": reason})]


def _exec_row(guest: CommandGuest, plan: Plan) -> Row:
    command = "exec", guest.name, "--", "true"
    ssh = ["ssh", "-F", str(guest.scratch / "ssh_config"), f"{guest.name}.vsock", "true"]

    def milliseconds(run: Callable[[], None]) -> float:
        begun = time.monotonic()
        run()
        return (time.monotonic() - begun) * 1000

    def warm() -> float:
        """In a session that is kept open, but for its opening."""
        guest.vsock("session", "open", guest.name)
        try:
            return milliseconds(partial(guest.vsock, *command))
        finally:
            guest.vsock("session", "close", guest.name)

    contenders: dict[str, Callable[[], float]] = {
        "ours": warm,
        "ours cold": partial(milliseconds, partial(guest.vsock, *command)),
        "ssh": partial(milliseconds, partial(guest.command, *ssh)),
        "vsock --version": partial(milliseconds, partial(guest.vsock, "--version")),
    }
    times, failures = alternate(contenders, 3 if plan.quick else 10)
    what = "vsock exec NAME -- true, guest under uml; ours is in a kept session"
    return Row("exec uml", "ms", times, what, failures, is_less_better=True)


def _forward_rows(guest: CommandGuest, plan: Plan) -> list[Row]:
    """A forward from a Unix socket to a port of the guest, and that port itself."""
    seconds = max(0.5, plan.seconds)
    with _forward(guest) as path:
        contenders: dict[str, Measure] = {
            "ours": partial(measure, seconds, partial(_unix, path)),
            "plain vsock": partial(measure, seconds, partial(_plain, guest)),
        }
        samples, failures = alternate(told(contenders), 2 if plan.quick else 5)
    rows = []
    for figure, unit in (("h2g", "MiB/s"), ("g2h", "MiB/s"), ("ping p50", "µs")):
        values = {name: [sample[figure] for sample in of] for name, of in samples.items()}
        what = f"vsock forward unix:PATH NAME:{PERF}, {SIZE} bytes for {seconds} s, guest under uml"
        rows.append(Row(f"forward {figure}", unit, values, what, failures))
    return rows


@contextmanager
def _forward(guest: CommandGuest) -> Iterator[Path]:
    path = guest.scratch / "forward"
    words = [sys.executable, "-m", "vsock.cli", "forward", f"unix:{path}", f"{guest.name}:{PERF}"]
    with subprocess.Popen(words, env=guest.environment) as process:
        try:
            deadline = time.monotonic() + START_SECONDS
            while not path.exists():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise AgentError("vsock forward does not listen")
                time.sleep(0.05)
            yield path
        finally:
            process.terminate()


def _unix(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


def _plain(guest: CommandGuest) -> socket.socket:
    where = SwitchTransport(guest.environment["VSOCK_RUNTIME_DIR"])
    return sockets.create_connection((guest.cid, PERF), 20, transport=where)

"""`vsock demo`: a switch, two real guests, and a check of each thing that a switch does.

`lab` starts the switch and the guests, `checks` are the checks, `programs` run at the two ends of each
check, `screen` and `report` show the results. This module combines them. It is not a test suite: it
shows in under a minute that the main functions work on this machine, and how fast.
"""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vsock._system.waiting import SIGNAL_SECONDS
from vsock.demo.checks import Check, checks_for
from vsock.demo.lab import Lab, open_lab
from vsock.demo.places import LinuxPlace
from vsock.demo.programs import shell_server
from vsock.demo.report import CheckReport, Report
from vsock.demo.screen import SHELL_PORT, Screen
from vsock.errors import VsockError

__all__ = ["main"]


def main(*, keep: bool = False, as_json: bool = False) -> int:
    """Run the demo; returns the exit status, 0 only if every check passed.

    Args:
        keep: leave switch and guests running until Ctrl-C.
        as_json: print one JSON object to standard output, and progress to standard error.
    """
    screen = Screen(stderr=as_json)
    report = Report(begun=time.monotonic())
    with _end_as_interrupt():
        try:
            with screen.working("starting a switch and two guests"), open_lab(screen.step) as lab:
                _run_checks(lab, report, screen)
                _tell(report, screen, as_json)
                if keep:
                    _keep(lab, screen)
        except VsockError as error:
            report.notes.append(str(error))
            screen.fault(str(error))
            _tell(report, screen, as_json)
        except KeyboardInterrupt:
            screen.fault("interrupted")
            return 130
    if report.is_well and not keep:
        screen.next_steps()
    return 0 if report.is_well else 1


def _run_checks(lab: Lab, report: Report, screen: Screen) -> None:
    report.guests = lab.guests
    report.notes = lab.notes
    checks = checks_for(lab)
    screen.guests(lab.guests, lab.notes)
    for check in checks:
        screen.now(check.name)
        done = _run(check, lab)
        report.checks.append(done)
        screen.check(done)
    report.rates = lab.rates


def _run(check: Check, lab: Lab) -> CheckReport:
    begun = time.monotonic()
    try:
        detail, is_ok = check.run(lab), True
    except Exception as error:  # any exception is the result of the check
        detail, is_ok = str(error).strip() or type(error).__name__, False
    return CheckReport(check.name, is_ok, round(time.monotonic() - begun, 3), detail)


def _tell(report: Report, screen: Screen, as_json: bool) -> None:
    screen.end(report)
    if as_json:
        print(json.dumps(report.as_json(), indent=2), flush=True)


def _keep(lab: Lab, screen: Screen) -> None:
    for place in (lab.alpha, lab.beta):
        if isinstance(place, LinuxPlace):
            place.start(shell_server, SHELL_PORT).read_line()
    screen.kept(lab.runtime_dir, lab.guests)
    if lab.server_guest:
        screen.kept_server(lab.state_home, lab.server_guest)
    screen.rest()
    never = threading.Event()
    try:
        while not never.wait(SIGNAL_SECONDS):
            pass
    except KeyboardInterrupt:
        return


@contextmanager
def _end_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal must end the demo and its guests, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` requires
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

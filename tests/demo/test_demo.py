"""The demo with userspace guests: faster, and the same except for the guests' kernels."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vsock.address import CID_HOST
from vsock.demo.checks import CHECKS
from vsock.demo.checks.work import prepare
from vsock.demo.lab import Lab
from vsock.demo.places import ProcessPlace
from vsock.demo.report import CheckReport, Report

COMMAND = [sys.executable, "-m", "vsock.cli", "demo"]


def run_demo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user runs it."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=55
    )


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where `make guests` could not do anything."""
    monkeypatch.setenv("VSOCK_GUEST_IMAGES", "/nonexistent")


@pytest.mark.usefixtures("no_images")
def test_demo_without_images_uses_userspace_guests_and_says_so() -> None:
    """All checks pass, and the JSON has what the documentation promises."""
    done = run_demo("--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert [(guest["name"], guest["cid"], guest["vmm"]) for guest in report["guests"]] == [
        ("alpha", 3, "userspace"),
        ("beta", 4, "userspace"),
    ]
    assert [check["name"] for check in report["checks"]] == [check.name for check in CHECKS]
    assert all(check["ok"] for check in report["checks"])
    assert len(report["rates"]) == 6
    assert all(rate["megabytes_per_second"] > 0 for rate in report["rates"])
    assert all("run `make guests`" in note for note in report["notes"])
    assert len(report["notes"]) == 2


def test_work_in_a_guest_that_cannot_be_prepared_is_a_note(tmp_path: Path) -> None:
    """The checks are left out then, with the reason, and the demo goes on."""
    host = ProcessPlace("host", CID_HOST, tmp_path)
    lab = Lab(tmp_path, host, host, host, [], [])
    lab.state_home.write_text("no directory")
    reason = prepare(lab)
    assert reason is not None
    assert reason.startswith("no commands in guests: ")


def test_report_is_well_only_if_every_check_passed() -> None:
    """The exit status depends on it; a report without checks is a failure."""
    passed = CheckReport("a", True, 1.0, "")
    failed = CheckReport("b", False, 1.0, "")
    assert not Report().is_well
    assert Report(checks=[passed]).is_well
    assert not Report(checks=[passed, failed]).is_well

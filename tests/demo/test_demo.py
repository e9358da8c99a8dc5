"""The demo with userspace guests: faster, and the same except for the guests' kernels."""

import json
import subprocess
import sys
from typing import Any

import pytest

from vsock.demo.checks import CHECKS
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


def test_report_is_well_only_if_every_check_passed() -> None:
    """The exit status depends on it; a report without checks is a failure."""
    passed = CheckReport("a", True, 1.0, "")
    failed = CheckReport("b", False, 1.0, "")
    assert not Report().is_well
    assert Report(checks=[passed]).is_well
    assert not Report(checks=[passed, failed]).is_well

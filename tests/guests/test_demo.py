"""The demo as `make demo` runs it, with real guests of its own."""

import json
import subprocess
import sys

import pytest

from vsock.testing.plugin import SharedGuests, guest_or_skip


@pytest.mark.usefixtures("vsock_switch")
def test_demo_passes_with_real_guests(linux_guests: SharedGuests) -> None:
    """Both guests are Linux, every check passes, and the exit status says so."""
    guest_or_skip(linux_guests, "qemu-6.1")
    guest_or_skip(linux_guests, "uml")
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert [guest["vmm"] for guest in report["guests"]] == ["qemu", "uml"]
    assert all(guest["kernel"] for guest in report["guests"])
    assert report["ok"]

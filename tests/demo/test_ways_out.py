"""N3: however the demo is ended, it exits soon, and none of its machines goes on running.

The machines here are scripts that print nothing, as a broken QEMU may; `tests/guests` has the same with
real machines.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "vsock.cli", "demo"]
DEADLINE = 30.0
SILENT = "#!/bin/sh\necho $$ >> {pids}\nexec sleep 500\n"


class Machines:
    """VMMs that print nothing, and a directory for all files of the demo."""

    def __init__(self, folder: Path) -> None:
        self.pids_file = folder / "pids"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        images = folder / "images"
        for script in (folder / "bin/qemu-system-x86_64", images / "linux.uml"):
            script.parent.mkdir(exist_ok=True)
            script.write_text(SILENT.format(pids=self.pids_file))
            script.chmod(0o755)
        image = {"release": "6.1", "kernel": "linux.uml", "initramfs": "none"}
        manifest = {"images": {"6.1": {**image, "vmm": "qemu"}, "uml": {**image, "vmm": "uml"}}}
        (images / "manifest.json").write_text(json.dumps(manifest))
        self.environment = {
            **os.environ,
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "TMPDIR": str(self.temporary),
            "VSOCK_GUEST_IMAGES": str(images),
            "VSOCK_TEST_ACCEL": "tcg",
        }

    def pids(self) -> list[int]:
        """The processes that the demo started as VMMs."""
        return [int(line) for line in self.pids_file.read_text().split()]

    def check_gone(self) -> None:
        """Check that no process and no file is left."""
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in self.pids()))
        assert list(self.temporary.iterdir()) == []


def wait_until(is_so: object) -> None:
    """Check a condition every hundredth of a second."""
    assert callable(is_so)
    for _ in range(int(DEADLINE * 100)):
        if is_so():
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail(f"not within {DEADLINE:g} s")


@pytest.fixture
def machines(short_path: Path) -> Machines:
    """Two machines that never finish booting."""
    return Machines(short_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_demo_whose_machines_say_nothing(
    machines: Machines, number: signal.Signals
) -> None:
    """Before the signal it prints what it is doing; after the signal it and its machines end at once."""
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, text=True, env=machines.environment
    ) as demo:
        assert demo.stdout
        booting = {"  alpha: booting qemu-system-x86_64\n", "  beta: booting linux.uml\n"}
        while booting:
            line = demo.stdout.readline()
            assert line, "it ended"
            booting.discard(line)
        wait_until(lambda: machines.pids_file.exists() and len(machines.pids()) == 2)
        demo.send_signal(number)
        assert demo.wait(DEADLINE) == 130
        assert demo.stdout.read() == "FAIL interrupted\n"
    machines.check_gone()


def test_demo_that_nobody_reads_ends_at_its_first_line(machines: Machines) -> None:
    """It ends without a message, as any command in a closed pipe, although its machines are booting in another thread."""
    reader, writer = os.pipe()
    os.close(reader)
    demo = subprocess.Popen(
        COMMAND, stdout=writer, stderr=subprocess.PIPE, text=True, env=machines.environment
    )
    os.close(writer)
    _, errors = demo.communicate(timeout=DEADLINE)
    assert (demo.returncode, errors) == (1, "")
    if machines.pids_file.exists():
        machines.check_gone()


def test_killed_demo_leaves_no_machine(machines: Machines) -> None:
    """After SIGKILL of the demo, the watchers of the machines end them."""
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, text=True, env=machines.environment
    ) as demo:
        wait_until(lambda: machines.pids_file.exists() and len(machines.pids()) == 2)
        demo.kill()
        demo.wait(DEADLINE)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in machines.pids()))

"""The choice of QEMU's accelerator, and that the trial is not repeated (H2)."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vsock.testing import accel, aio
from vsock.testing._command import QEMU
from vsock.testing.errors import GuestUnavailable
from vsock.testing.images import ENVIRONMENT_VARIABLE, Image


class Trial:
    """A replacement for booting a guest under KVM, which counts."""

    def __init__(self, works: bool) -> None:
        self.works = works
        self.count = 0

    async def __call__(self) -> bool:
        """Count a boot."""
        self.count += 1
        for _ in range(100):
            await asyncio.sleep(0)  # others could begin a trial meanwhile
        return self.works


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a QEMU and a usable /dev/kvm, without a cached result."""
    qemu = tmp_path / "bin" / QEMU
    qemu.parent.mkdir()
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 7.2\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "KVM_DEVICE", device)
    return tmp_path


@pytest.mark.parametrize(("works", "chosen"), [(True, "kvm"), (False, "tcg")])
async def test_trial_decides_and_is_remembered(machine: Path, works: bool, chosen: str) -> None:
    """A guest that hangs under KVM costs seconds: once is enough."""
    trial = Trial(works)
    assert await accel.choose_accelerator(trial) == chosen
    assert await accel.choose_accelerator(trial) == chosen
    assert trial.count == 1


async def test_guests_booted_at_once_wait_for_one_trial(machine: Path) -> None:
    """H2: three trials at once on a busy machine can all take too long."""
    trial = Trial(True)
    chosen = await asyncio.gather(*(accel.choose_accelerator(trial) for _ in range(3)))
    assert (chosen, trial.count) == (["kvm"] * 3, 1)


TRIAL_IN_A_PROCESS = """
import asyncio, sys
from pathlib import Path
from vsock.testing import accel

async def trial():
    with open(sys.argv[2], "a") as log:
        log.write("trial\\n")
    return False

accel.KVM_DEVICE = Path(sys.argv[1])
assert asyncio.run(accel.choose_accelerator(trial)) == "tcg"
"""


def test_processes_that_boot_at_once_wait_for_one_trial(machine: Path) -> None:
    """H2: as the first `make conformance` of a fresh checkout."""
    paths = [str(machine / "kvm"), str(machine / "log")]
    command = [sys.executable, "-c", TRIAL_IN_A_PROCESS, *paths]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(30) for process in processes] == [0, 0, 0]
    assert (machine / "log").read_text() == "trial\n"


GREETS_AND_ENDS = """
import os, sys
(qmp,) = [word for word in sys.argv if word.startswith("socket,id=qmp,fd=")]
os.write(int(qmp.rpartition("=")[2]), b'{"QMP": {}}\\n')
"""
"""So that the first command finds a closed connection."""


async def test_qemu_that_ends_at_once_is_no_kvm(machine: Path) -> None:
    """H2: the reset of its pipe is not raised as ConnectionResetError."""
    image = Image("6.1", "qemu", "6.1.0", machine / "k", machine / "i")
    (machine / "manifest.json").write_text(
        json.dumps(
            {"images": {"6.1": {"vmm": "qemu", "release": "6", "kernel": "k", "initramfs": "i"}}}
        )
    )
    qemu = machine / "bin" / QEMU
    qemu.write_text(f"#!{sys.executable} -IS\n{GREETS_AND_ENDS}")
    for _ in range(20):
        assert not await aio.boots_under_kvm(image, str(qemu))


async def test_answer_is_kept_for_each_qemu(machine: Path) -> None:
    """Two QEMUs used alternately need two trials in all."""
    other = machine / "bin/other-qemu"
    other.write_text("#!/bin/sh\necho QEMU emulator version 11.1\n")
    other.chmod(0o755)
    works, fails = Trial(True), Trial(False)
    for _ in range(3):
        assert await accel.choose_accelerator(works) == "kvm"
        assert await accel.choose_accelerator(fails, str(other)) == "tcg"
    assert (works.count, fails.count) == (1, 1)


async def test_unreadable_answer_is_asked_again(machine: Path) -> None:
    """A broken cache is no error."""
    trial = Trial(True)
    await accel.choose_accelerator(trial)
    (machine / "cache/vsock/accelerator.json").write_text("[]")
    assert await accel.choose_accelerator(trial) == "kvm"
    assert trial.count == 2


async def test_no_kvm_device_means_emulation_without_a_trial(machine: Path) -> None:
    """As on most CI machines."""
    (machine / "kvm").unlink()
    trial = Trial(True)
    assert await accel.choose_accelerator(trial) == "tcg"
    assert trial.count == 0


async def test_no_qemu_says_what_to_install(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of a skip, or of the demo's userspace guest."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GuestUnavailable, match="apt-get install qemu-system-x86"):
        await accel.choose_accelerator(Trial(True))

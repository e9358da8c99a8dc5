"""How QEMU's accelerator is chosen, and that the trial is not repeated."""

import os
from pathlib import Path

import pytest

from vsock.testing import accel
from vsock.testing._command import QEMU
from vsock.testing.errors import GuestUnavailable


class Trial:
    """Stands for booting a guest under KVM; counts."""

    def __init__(self, works: bool) -> None:
        self.works = works
        self.count = 0

    async def __call__(self) -> bool:
        """Boot, as it were."""
        self.count += 1
        return self.works


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a QEMU and a /dev/kvm that can be opened, and nothing known yet."""
    qemu = tmp_path / "bin" / QEMU
    qemu.parent.mkdir()
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 7.2\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{qemu.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
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


async def test_unreadable_answer_is_asked_again(machine: Path) -> None:
    """The cache is nothing to fail over."""
    trial = Trial(True)
    await accel.choose_accelerator(trial)
    (machine / "cache/vsock/accelerator.json").write_text("[]")
    assert await accel.choose_accelerator(trial) == "kvm"
    assert trial.count == 2


async def test_no_kvm_device_means_emulation_without_a_trial(machine: Path) -> None:
    """As on most machines of a CI."""
    (machine / "kvm").unlink()
    trial = Trial(True)
    assert await accel.choose_accelerator(trial) == "tcg"
    assert trial.count == 0


async def test_no_qemu_says_what_to_install(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of a skip, or of the demo's userspace guest."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GuestUnavailable, match="apt-get install qemu-system-x86"):
        await accel.choose_accelerator(Trial(True))

"""N3: a VMM that starts and prints nothing: each wait for it ends, and the VMM is ended."""

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from vsock.testing import accel, aio
from vsock.testing._command import QEMU
from vsock.testing._loop import LoopThread
from vsock.testing.errors import GuestGone, GuestTimeout, GuestUnavailable

DEADLINE = 30.0


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """QEMU and User-Mode Linux that do nothing; the file where each notes its pid."""
    noted = tmp_path / "pids"
    for name in (QEMU, "linux.uml"):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho $$ >> {noted}\nexec sleep 500\n")
        script.chmod(0o755)
    image = {"release": "6.1", "kernel": "linux.uml", "initramfs": "none"}
    manifest = {"images": {"6.1": {**image, "vmm": "qemu"}, "uml": {**image, "vmm": "uml"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("VSOCK_GUEST_IMAGES", str(tmp_path))
    return noted


def are_gone(pids: Path) -> bool:
    """Whether none of the processes in the file is left."""
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split())


@pytest.mark.parametrize(
    ("guest", "fault"),
    [
        (lambda: aio.QemuGuest(None, "q", accelerator="tcg", boot_timeout=1), GuestGone),
        (lambda: aio.UmlGuest(None, "u", boot_timeout=1), GuestTimeout),
    ],
)
async def test_boot_has_a_limit(pids: Path, guest: object, fault: type[Exception]) -> None:
    """One limit for the whole boot, whichever channel stays silent."""
    assert callable(guest)
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(fault):
            await guest().start()
    assert are_gone(pids)


async def test_qemu_that_does_not_say_its_version_is_none(
    pids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for its version has a limit."""
    monkeypatch.setattr(accel, "_VERSION_SECONDS", 0.5)
    monkeypatch.setattr(accel, "KVM_DEVICE", tmp_path / "manifest.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    async def never() -> bool:
        raise AssertionError("no trial with a QEMU that does not work")

    async with asyncio.timeout(DEADLINE):
        with pytest.raises(GuestUnavailable, match="--version` said nothing"):
            await accel.choose_accelerator(never)
        while not are_gone(pids):  # noqa: ASYNC110 - another process's end, which sets no event
            await asyncio.sleep(0)


def test_what_the_caller_is_asked_to_call_ends_the_waiting_when_it_fails() -> None:
    """The cancelled wait has cleaned up when the caller goes on."""
    from queue import SimpleQueue

    from vsock.testing._loop import Calls

    calls: Calls = SimpleQueue()
    cleaned = []

    async def work() -> None:
        calls.put(fail)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(time.monotonic())

    def fail() -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        LoopThread().call(work(), calls)
    assert cleaned

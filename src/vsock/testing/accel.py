"""The accelerator of QEMU: KVM if a guest really boots under it, else emulation (TCG).

A /dev/kvm that can be opened is not enough: in nested or sandboxed machines QEMU may fail an assertion
or the guest may hang. So a guest is booted once, and the result is kept until the host reboots.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import platform
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal

from vsock._system.processes import start_process
from vsock.testing._command import QEMU
from vsock.testing.errors import GuestUnavailable

Accelerator = Literal["kvm", "tcg"]

ENVIRONMENT_VARIABLE = "VSOCK_TEST_ACCEL"
"""Environment variable: "kvm" or "tcg" decide without a trial."""

KVM_DEVICE = Path("/dev/kvm")

PROBE_SECONDS = 4.0
"""Timeout of the trial in seconds: a guest under KVM answers within a second or two."""


_VERSION_SECONDS = 10.0
"""Seconds within which a QEMU must print its version."""


async def choose_accelerator(
    boots_under_kvm: Callable[[], Awaitable[bool]], qemu: str = QEMU
) -> Accelerator:
    """The accelerator for this machine; `boots_under_kvm` tries a guest if nothing else decides.

    Programs and threads that boot guests at the same time wait for one trial: several trials at once could
    each exceed the timeout.

    Raises:
        GuestUnavailable: there is no QEMU, or one that does not print its version.
    """
    if shutil.which(qemu) is None:
        raise GuestUnavailable(f"no {qemu} here: apt-get install qemu-system-x86")
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen in ("kvm", "tcg"):
        return "kvm" if chosen == "kvm" else "tcg"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    machine, version = _machine(), await _version(qemu)
    cache = _cache_file()
    if version not in _answers(cache, machine):
        async with _alone(cache):
            answers = _answers(cache, machine)
            if version not in answers:
                works = await boots_under_kvm()
                _keep(cache, {"machine": machine, "kvm": answers | {version: works}})
                return "kvm" if works else "tcg"
    return "kvm" if _answers(cache, machine)[version] else "tcg"


def _machine() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{platform.release()} {boot_id}"


async def _version(qemu: str) -> str:
    devnull, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    process = await start_process(qemu, "--version", stdin=devnull, stdout=pipe, stderr=devnull)
    try:
        async with asyncio.timeout(_VERSION_SECONDS):
            shown, _ = await process.communicate()
    except TimeoutError:
        raise GuestUnavailable(
            f"`{qemu} --version` said nothing for {_VERSION_SECONDS:g} s: this QEMU does not work"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return shown.decode(errors="replace").partition("\n")[0]


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "vsock" / "accelerator.json"


def _answers(cache: Path, machine: str) -> dict[str, bool]:
    """The results for each QEMU on this machine since the machine was booted."""
    try:
        known = json.loads(cache.read_text())
        if known["machine"] == machine:
            return {str(version): bool(works) for version, works in known["kvm"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no result yet, or an unreadable file
    return {}


@contextlib.asynccontextmanager
async def _alone(cache: Path) -> AsyncIterator[None]:
    """Lock out other trials; without effect if the folder is not writable."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        lock = cache.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:  # closing it unlocks it
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        yield


def _keep(cache: Path, answer: dict[str, object]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, delete=False) as partial:
            json.dump(answer, partial)
        Path(partial.name).replace(cache)
    except OSError:
        pass  # the next run tries again

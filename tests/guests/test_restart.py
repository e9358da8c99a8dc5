"""The effect of a restart of the switch on a machine, as in docs/guide/running-a-switch.md (N5)."""

import time
from collections.abc import Callable
from pathlib import Path

import vsock
from vsock.errors import ConnectRefused
from vsock.runtime import RuntimeFiles
from vsock.switch import Switch
from vsock.testing import QemuGuest

DEADLINE = 60


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + DEADLINE
    while not is_so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def answers(switch: Switch) -> bool:
    """Whether the guest alpha answers: its kernel refuses a port without a listener."""
    try:
        vsock.create_connection("alpha:1", 1, transport=switch.transport).close()
    except ConnectRefused:
        return True
    except OSError:
        return False
    return True


def state(switch: Switch) -> str:
    """The state of the guest alpha."""
    return switch.guest("alpha").state


def test_qemu_guest_is_back_after_power_off_and_on(runtime_dir: Path, linux_guest: object) -> None:
    """A reboot from inside does not restore its device, because its QEMU does not connect again."""
    path = RuntimeFiles(runtime_dir).guest_socket("alpha")
    with Switch({"alpha": 3}) as first, QemuGuest(path, "alpha") as guest:
        wait_until(lambda: answers(first), "the guest answers")
        first.stop()
        with Switch({"alpha": 3}) as second:
            guest.reboot()
            assert state(second) == "waiting"
            assert not answers(second)
            guest.kill()
            with QemuGuest(path, "alpha"):
                wait_until(lambda: answers(second), "the machine that was started again answers")
                assert state(second) == "running"

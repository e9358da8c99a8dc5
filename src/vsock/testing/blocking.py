"""Linux guests for programs and tests without asyncio: the classes of `aio` with calls that block.

This module only waits; `aio` has the guests and their booting.
"""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from vsock.testing import agent, aio
from vsock.testing._loop import Calls, loop_thread
from vsock.testing.agent import Result
from vsock.testing.images import Vmm

__all__ = ["GuestProcess", "LinuxGuest", "QemuGuest", "UmlGuest", "boot", "start_all"]

_Twin = TypeVar("_Twin", bound=aio.LinuxGuest)


class GuestProcess:
    """A command that runs in a guest; see `vsock.testing.agent.GuestProcess`."""

    def __init__(self, process: agent.GuestProcess) -> None:
        self._process = process

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.status

    def read_line(self, timeout: float = 30) -> str:
        """The next line of its standard output, without the line end."""
        return loop_thread().call(self._process.read_line(timeout))

    def write(self, data: bytes, *, eof: bool = False) -> None:
        """Send to its standard input, and end that with `eof`."""
        loop_thread().call(self._process.write(data, eof=eof))

    def send_signal(self, number: int) -> None:
        """Send it a signal; without effect if it has ended."""
        loop_thread().call(self._process.send_signal(number))

    def kill(self, timeout: float = 10) -> Result:
        """Kill it and wait for its end."""
        return loop_thread().call(self._process.kill(timeout))

    def wait(self, timeout: float = 30) -> Result:
        """Wait for its end."""
        return loop_thread().call(self._process.wait(timeout))

    def result(self, timeout: float = 30) -> Any:
        """Wait for the end of a `spawn_call` and return what the function returned."""
        return loop_thread().call(self._process.result(timeout))


class LinuxGuest(Generic[_Twin]):
    """A Linux guest that `with` boots; arguments and errors as `vsock.testing.aio.LinuxGuest`."""

    _twin_class: ClassVar[type[aio.LinuxGuest]]

    def __init__(self, switch: Any, name: str, **options: Any) -> None:
        self._twin: _Twin = loop_thread().call(self._make(switch, name, options))

    async def _make(self, switch: Any, name: str, options: dict[str, Any]) -> Any:
        return self._twin_class(switch, name, **options)

    def start(self) -> None:
        """Boot, and wait until commands can be run."""
        loop_thread().call(self._twin.start())

    def stop(self, timeout: float = 10) -> None:
        """Power the guest off; kill it if that takes longer than `timeout` seconds."""
        loop_thread().call(self._twin.stop(timeout))

    def kill(self) -> None:
        """End the VMM at once, as a power cut does; twice is harmless."""
        loop_thread().call(self._twin.kill())

    def wait_ended(self, timeout: float = 30) -> int:
        """Wait until the VMM has ended by itself; returns its exit status."""
        return loop_thread().call(self._twin.wait_ended(timeout))

    def reboot(self, timeout: float = 60) -> None:
        """Let the guest reboot itself and wait until it is up again."""
        loop_thread().call(self._twin.reboot(timeout))

    def run(self, command: str | Sequence[str], **options: Any) -> Result:
        """Run a program or a shell command in the guest and wait for its end."""
        return loop_thread().call(self._twin.run(command, **options))

    def python(self, source: str, *arguments: str, **options: Any) -> Result:
        """Run Python code in the guest, in a fork of the agent, and wait for its end."""
        return loop_thread().call(self._twin.python(source, *arguments, **options))

    def spawn(self, command: str | Sequence[str]) -> GuestProcess:
        """Start a command in the guest and do not wait for it."""
        return GuestProcess(loop_thread().call(self._twin.spawn(command)))

    def spawn_python(self, source: str, *arguments: str) -> GuestProcess:
        """Start Python code in the guest and do not wait for it."""
        return GuestProcess(loop_thread().call(self._twin.spawn_python(source, *arguments)))

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = 30) -> Any:
        """Run a self-contained Python function in the guest; return its result."""
        return loop_thread().call(self._twin.call(function, *arguments, timeout=timeout))

    def spawn_call(self, function: Callable[..., Any], *arguments: Any) -> GuestProcess:
        """Start a Python function in the guest; `GuestProcess.result` waits for its result."""
        return GuestProcess(loop_thread().call(self._twin.spawn_call(function, *arguments)))

    @property
    def name(self) -> str:
        """The guest's name in the switch."""
        return self._twin.name

    @property
    def vmm(self) -> Vmm:
        """Its VMM: "qemu" or "uml"."""
        return self._twin.vmm

    @property
    def kernel_release(self) -> str:
        """The output of `uname -r` in the guest."""
        return self._twin.kernel_release

    @property
    def boot_seconds(self) -> float:
        """How long the boot took, until commands could be run."""
        return self._twin.boot_seconds

    @property
    def pid(self) -> int:
        """Process id of the VMM."""
        return self._twin.pid

    def console_tail(self, lines: int = 25) -> str:
        """The last lines of the guest's console."""
        return self._twin.console_tail(lines)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()


class QemuGuest(LinuxGuest[aio.QemuGuest]):
    """A guest under QEMU; see `vsock.testing.aio.QemuGuest`."""

    _twin_class = aio.QemuGuest

    def reset(self, timeout: float = 60) -> None:
        """Press the reset button and wait until the guest is up again."""
        loop_thread().call(self._twin.reset(timeout))

    def pause(self) -> None:
        """Stop the guest's CPUs; the vsock device is stopped too."""
        loop_thread().call(self._twin.pause())

    def resume(self) -> None:
        """Let a paused guest go on."""
        loop_thread().call(self._twin.resume())

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its answer."""
        return loop_thread().call(self._twin.qmp.execute(command, **arguments))


class UmlGuest(LinuxGuest[aio.UmlGuest]):
    """A guest under User-Mode Linux; see `vsock.testing.aio.UmlGuest`."""

    _twin_class = aio.UmlGuest


def boot(switch: Any, name: str, *, vmm: Vmm = "qemu", **options: Any) -> QemuGuest | UmlGuest:
    """A guest of the kind `vmm`, to be booted by `with`; options as in `aio.LinuxGuest`."""
    return (
        QemuGuest(switch, name, **options) if vmm == "qemu" else UmlGuest(switch, name, **options)
    )


def start_all(
    guests: Sequence[LinuxGuest[Any]], calls: Calls | None = None
) -> list[BaseException | None]:
    """Boot guests at the same time; returns for each the error that prevented its boot, or None.

    Args:
        guests: not started yet. If the caller is interrupted, all of them are ended.
        calls: functions that their `progress` puts there are called in the caller's thread, which can print.
    """

    async def start() -> list[BaseException | None]:
        starting = (guest._twin.start() for guest in guests)
        return list(await asyncio.gather(*starting, return_exceptions=True))

    return loop_thread().call(start(), calls)

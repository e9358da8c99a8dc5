"""Linux guests for asyncio programs and tests: boot one, run commands in it, end it.

    async with vsock.Switch({"alpha": 3}) as switch:
        async with aio.QemuGuest(switch, "alpha", kernel="6.12") as guest:
            print((await guest.run("uname -r")).stdout)

Commands go over a serial port, never over vsock, so vsock in the guest can be tested in any state.
Every wait has a deadline, and its error ends with the last lines of the guest's console. After the
guest's block, however it ends, its processes and files are gone. `vsock.testing` has the same for
programs without asyncio.
"""

# ruff: noqa: ASYNC109 - each wait says in its signature how long it takes at most, and the
# error names the event that was waited for, which an asyncio.timeout around the call could not.

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

from vsock.testing._command import QEMU, qemu_command, uml_command
from vsock.testing._process import VmmProcess
from vsock.testing.accel import PROBE_SECONDS, choose_accelerator
from vsock.testing.agent import Agent, GuestProcess, Result
from vsock.testing.errors import GuestError, GuestGone, GuestTimeout
from vsock.testing.images import Image, Vmm, find_image
from vsock.testing.qmp import Qmp
from vsock.testing.remote import program, result_of

__all__ = ["LinuxGuest", "QemuGuest", "UmlGuest", "boot"]

Progress = Callable[[str], None]


class HasGuestSockets(Protocol):
    """The part of a switch that booting a guest needs."""

    def socket_path(self, name: str) -> Path:
        """The vhost-user socket of guest `name`."""


class LinuxGuest(ABC):
    """A Linux guest that `async with` (or `start`) boots, and whose end is the end of the block (or `kill`).

    Args:
        switch: the switch that has an entry for this guest; or the path of a vhost-user socket; or None
            for a guest without vsock.
        name: the guest's name in the switch.
        kernel: the image to boot; None for the first.
        memory_mib: guest memory.
        boot_timeout: seconds until the agent in the guest must answer.
        progress: called with a short text at each step of the boot.
        extra: more arguments for the VMM.
    """

    vmm: ClassVar[Vmm]

    def __init__(
        self,
        switch: HasGuestSockets | str | os.PathLike[str] | None,
        name: str,
        *,
        kernel: str | None = None,
        memory_mib: int = 256,
        boot_timeout: float = 60,
        progress: Progress | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._switch = switch
        self._kernel = kernel
        self._memory_mib = memory_mib
        self._boot_timeout = boot_timeout
        self._progress = progress or (lambda _: None)
        self._extra = extra
        self._process: VmmProcess | None = None
        self._agent = Agent(self.console_tail)
        self._work_dir: Path | None = None
        self._boot_id: str | None = None
        self.kernel_release = ""
        self.boot_seconds = 0.0

    # Life

    async def start(self) -> None:
        """Boot, and wait until commands can be run.

        Raises:
            GuestUnavailable: an image or the VMM is missing.
            GuestTimeout, GuestGone: the guest did not boot.
        """
        if self._process is not None:
            raise GuestError("this guest was started before; make another one")
        image = find_image(self.vmm, self._kernel)
        await self._prepare(image)
        begun = asyncio.get_running_loop().time()
        try:
            await self._launch(image)
            took = asyncio.get_running_loop().time() - begun
            hello = await self._wait_hello(max(1.0, self._boot_timeout - took))
        except BaseException:
            await self.kill()
            raise
        self._boot_id = hello["boot"]
        self.kernel_release = hello["kernel"]
        self.boot_seconds = asyncio.get_running_loop().time() - begun
        self._progress(f"ready: Linux {self.kernel_release}")

    async def stop(self, timeout: float = 10) -> None:
        """Power the guest off; kill it if that takes longer than `timeout` seconds."""
        if self._process is not None and self._process.status is None:
            with contextlib.suppress(GuestError, TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._agent.start("poweroff -f")
                    await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """End the VMM at once, as a power cut does; twice is harmless."""
        await self._close_channels()
        if self._process is not None:
            await self._process.kill()
        if self._work_dir is not None:
            shutil.rmtree(self._work_dir, ignore_errors=True)

    async def wait_ended(self, timeout: float = 30) -> int:
        """Wait until the VMM has ended by itself; returns its exit status."""
        try:
            async with asyncio.timeout(timeout):
                return await self._running().wait()
        except TimeoutError:
            raise GuestTimeout(
                f"{self.name} still runs after {timeout:g} s\n{self.console_tail()}"
            ) from None

    async def reboot(self, timeout: float = 60) -> None:
        """Let the guest reboot itself and wait until it is up again."""
        await self._agent.start("reboot -f")
        await self._wait_next_boot(timeout)

    async def _wait_next_boot(self, timeout: float) -> None:
        hello = await self._wait_hello(timeout, after=self._boot_id)
        self._boot_id = hello["boot"]

    async def _wait_hello(self, timeout: float, *, after: str | None = None) -> dict[str, Any]:
        try:
            return await self._agent.wait_hello(timeout, after=after)
        except GuestGone as gone:
            await self._running().read_last_words()
            status = self._running().status
            raise GuestGone(f"{gone} (exit status {status})\n{self.console_tail()}") from None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.kill()

    # Commands

    async def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - as subprocess.run calls it
        timeout: float = 30,
        check: bool = True,
    ) -> Result:
        """Run a program (a sequence) or a shell command (a text) in the guest and wait for its end.

        Raises:
            CommandFailed: its status is not 0, unless `check` is false.
            GuestTimeout: it ran longer than `timeout` seconds; it is killed then.
            GuestGone: the guest ended or rebooted meanwhile.
        """
        return await self._finished(await self.spawn(command), input, timeout, check)

    async def python(
        self, source: str, *arguments: str, timeout: float = 30, check: bool = True
    ) -> Result:
        """Run Python code in the guest, in a fork of the agent, which avoids starting an interpreter.

        `arguments` become its sys.argv[1:]. Otherwise as `run`.
        """
        process = await self.spawn_python(source, *arguments)
        return await self._finished(process, None, timeout, check)

    async def spawn(self, command: str | Sequence[str]) -> GuestProcess:
        """Start a command in the guest and do not wait for it."""
        return await self._agent.start(command)

    async def spawn_python(self, source: str, *arguments: str) -> GuestProcess:
        """Start Python code in the guest and do not wait for it."""
        return await self._agent.start_python(source, *arguments)

    async def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = 30) -> Any:
        """Run a Python function in the guest and return what it returns.

        The function must be self-contained, with its imports inside; arguments and result must be
        JSON. Raises as `run`.
        """
        result = await self.python(program(function, *arguments), timeout=timeout)
        return result_of(result.stdout)

    async def spawn_call(self, function: Callable[..., Any], *arguments: Any) -> GuestProcess:
        """Start a Python function in the guest; `GuestProcess.result` waits for its result."""
        return await self.spawn_python(program(function, *arguments))

    async def _finished(
        self, process: GuestProcess, data: bytes | None, timeout: float, check: bool
    ) -> Result:
        try:
            await process.write(data or b"", eof=True)
            result = await process.wait(timeout)
        except (GuestTimeout, asyncio.CancelledError):
            with contextlib.suppress(GuestError):
                await process.send_signal(9)
            raise
        return result.check() if check else result

    # What can be seen

    @property
    def pid(self) -> int:
        """Process id of the VMM."""
        return self._running().pid

    def console_tail(self, lines: int = 25) -> str:
        """The last lines of the guest's console, with a heading."""
        shown = "" if self._process is None else self._process.tail(lines)
        return f"--- console of {self.name} ---\n{shown}\n---"

    def console(self) -> list[str]:
        """The lines of the guest's console, the last few hundred."""
        return [] if self._process is None else self._process.console()

    # For the two kinds

    @abstractmethod
    async def _prepare(self, image: Image) -> None:
        """Find out the options of the VMM; its duration does not count as the guest's time to boot."""

    @abstractmethod
    async def _launch(self, image: Image) -> None:
        """Start the VMM and open the channels to it."""

    def _environment(self) -> dict[str, str]:
        """Variables of the VMM's environment, besides those of this process."""
        return {}

    async def _close_channels(self) -> None:
        await self._agent.close()

    def _running(self) -> VmmProcess:
        if self._process is None:
            raise GuestError(f"{self.name} was not started")
        return self._process

    def _socket(self) -> Path | None:
        if self._switch is None:
            return None
        if isinstance(self._switch, str | os.PathLike):
            return Path(self._switch)
        return self._switch.socket_path(self.name)

    def _on_console_line(self, line: str) -> None:
        if "init: userspace" in line:
            self._progress("kernel is up, starting the agent")

    async def _spawn(self, command: list[str], fds: Sequence[int]) -> None:
        self._progress(f"booting {Path(command[0]).name}")
        self._process = await VmmProcess.start(
            command,
            fds=fds,
            environment=self._environment(),
            on_line=self._on_console_line,
            work_dir=self._work_dir,
        )


class QemuGuest(LinuxGuest):
    """A guest under QEMU, with KVM if that works, and emulation (TCG) otherwise.

    Args:
        accelerator: "kvm" or "tcg"; None to find out.
        qemu: the program: a name in PATH or a path.
        event_queue: attach with QEMU's generic device, which gives the event queue to the switch (QEMU 11.1).

    The other arguments are those of `LinuxGuest`.
    """

    vmm = "qemu"

    def __init__(
        self,
        switch: HasGuestSockets | str | os.PathLike[str] | None,
        name: str,
        *,
        accelerator: str | None = None,
        qemu: str | os.PathLike[str] = QEMU,
        event_queue: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(switch, name, **options)
        self.accelerator = accelerator
        self._qemu = os.fspath(qemu)
        self._event_queue = event_queue
        self.qmp = Qmp()

    async def reset(self, timeout: float = 60) -> None:
        """Press the reset button and wait until the guest is up again."""
        await self.qmp.execute("system_reset")
        await self._wait_next_boot(timeout)

    async def pause(self) -> None:
        """Stop the guest's CPUs; the vsock device is stopped too."""
        await self.qmp.execute("stop")

    async def resume(self) -> None:
        """Let a paused guest go on."""
        await self.qmp.execute("cont")

    async def _prepare(self, image: Image) -> None:
        if self.accelerator is None:
            self._progress("asking QEMU what it can do")
            self.accelerator = await choose_accelerator(
                lambda: boots_under_kvm(image, self._qemu), self._qemu
            )

    async def _launch(self, image: Image) -> None:
        assert self.accelerator is not None
        with pair() as (agent, agent_there), pair() as (qmp, qmp_there):
            command = qemu_command(
                image,
                self.name,
                vsock_socket=self._socket(),
                memory_mib=self._memory_mib,
                accelerator=self.accelerator,
                agent_fd=agent_there.fileno(),
                qmp_fd=qmp_there.fileno(),
                qemu=self._qemu,
                event_queue=self._event_queue,
                extra=self._extra,
            )
            await self._spawn(command, [agent_there.fileno(), qmp_there.fileno()])
            await self._agent.open(agent.dup())
            qmp_here = qmp.dup()
        try:
            async with asyncio.timeout(self._boot_timeout):
                await self.qmp.open(qmp_here)
        except TimeoutError:
            raise GuestGone(f"QEMU did not come up\n{self.console_tail()}") from None
        except GuestGone:
            await self._running().read_last_words()
            raise GuestGone(f"QEMU did not come up\n{self.console_tail()}") from None

    async def _close_channels(self) -> None:
        await super()._close_channels()
        await self.qmp.close()


class UmlGuest(LinuxGuest):
    """A guest under User-Mode Linux: a Linux kernel as an ordinary process; arguments as `LinuxGuest`."""

    vmm = "uml"

    def _environment(self) -> dict[str, str]:
        """The folder of the guest's memory: /dev/shm, unless that is too small, as in many containers."""
        try:
            there = os.statvfs("/dev/shm")
        except OSError:
            return {}
        has_room = there.f_bavail * there.f_frsize > 2 * self._memory_mib << 20
        return {"TMPDIR": "/dev/shm"} if has_room else {}

    async def _prepare(self, image: Image) -> None:
        """Nothing to find out: it is an ordinary process, the same on every machine."""

    async def _launch(self, image: Image) -> None:
        self._work_dir = Path(tempfile.mkdtemp(prefix="vsock-uml-"))
        with pair() as (agent, agent_there):
            command = uml_command(
                image,
                self.name,
                vsock_socket=self._socket(),
                memory_mib=self._memory_mib,
                agent_fd=agent_there.fileno(),
                work_dir=self._work_dir,
                extra=self._extra,
            )
            await self._spawn(command, [agent_there.fileno()])
            await self._agent.open(agent.dup())


def boot(
    switch: HasGuestSockets | str | os.PathLike[str] | None,
    name: str,
    *,
    vmm: Vmm = "qemu",
    **options: Any,
) -> QemuGuest | UmlGuest:
    """A guest of the kind `vmm`, to be booted by `async with`; options as in `LinuxGuest`."""
    return (
        QemuGuest(switch, name, **options) if vmm == "qemu" else UmlGuest(switch, name, **options)
    )


async def boots_under_kvm(image: Image, qemu: str) -> bool:
    trial = QemuGuest(
        *(None, "kvm-trial"),
        kernel=image.name,
        accelerator="kvm",
        qemu=qemu,
        boot_timeout=PROBE_SECONDS,
    )
    try:
        async with trial:
            return True
    except GuestError:
        return False


@contextlib.contextmanager
def pair() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs

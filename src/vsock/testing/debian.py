"""A Debian 13 guest under QEMU, as its packages make it, without our agent: for tests of what a stock system does.

    with vsock.Switch({"debian": 3}, control=True) as switch:
        with debian.DebianGuest(switch, "debian", {"ssh.authorized_keys.root": key}):
            ...

Commands reach it by its own sshd, which listens on port 22 of vsock. That it is up, it tells the switch, if it has
the credential for that.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vsock.testing._command import QEMU, debian_command
from vsock.testing._loop import loop_thread
from vsock.testing._process import VmmProcess
from vsock.testing.accel import choose_accelerator
from vsock.testing.aio import HasGuestSockets, boots_under_kvm, pair
from vsock.testing.errors import GuestError, GuestGone
from vsock.testing.images import find_debian, find_image
from vsock.testing.qmp import Qmp
from vsock.vmm import credential_args

__all__ = ["DebianGuest"]

_QMP_SECONDS = 20


class DebianGuest:
    """A Debian 13 guest whose VMM `with` (or `start`) starts, and whose end is the end of the block (or `kill`).

    What it writes to its disk is lost at its end.

    Args:
        switch: the switch that has an entry for this guest.
        name: the guest's name in the switch.
        credentials: system credentials by name, as for `vsock.vmm.credential_args`.
        memory_mib: guest memory.
        qemu: the program: a name in PATH or a path.
        extra: more arguments for QEMU.
    """

    def __init__(
        self,
        switch: HasGuestSockets,
        name: str,
        credentials: Mapping[str, str | bytes],
        *,
        memory_mib: int = 1024,
        qemu: str | os.PathLike[str] = QEMU,
        extra: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._switch = switch
        self._memory_mib = memory_mib
        self._qemu = os.fspath(qemu)
        self._extra = [*credential_args(credentials), *extra]
        self._process: VmmProcess | None = None
        self._qmp = Qmp()

    def start(self) -> None:
        """Start the VMM, and do not wait for the guest.

        Raises:
            GuestUnavailable: the image or QEMU is missing.
            GuestGone: QEMU did not come up.
        """
        loop_thread().call(self._start())

    def kill(self) -> None:
        """End the VMM at once, as a power cut does; twice is harmless."""
        loop_thread().call(self._kill())

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU's machine protocol, such as "stop", "cont" or "system_reset"; returns its answer.

        Raises:
            QmpError: QEMU refused it.
            GuestGone: QEMU has ended.
        """
        return loop_thread().call(self._qmp.execute(command, **arguments))

    @property
    def pid(self) -> int:
        """Process id of the VMM."""
        if self._process is None:
            raise GuestError(f"{self.name} was not started")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the VMM runs."""
        return self._process is not None and self._process.status is None

    def console_tail(self, lines: int = 25) -> str:
        """The last lines of the guest's console, with a heading."""
        shown = "" if self._process is None else self._process.tail(lines)
        return f"--- console of {self.name} ---\n{shown}\n---"

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

    async def _start(self) -> None:
        if self._process is not None:
            raise GuestError("this guest was started before; make another one")
        disk = find_debian()
        accelerator = await choose_accelerator(
            lambda: boots_under_kvm(find_image("qemu"), self._qemu), self._qemu
        )
        with pair() as (ours, theirs):
            command = debian_command(
                disk,
                self.name,
                vsock_socket=Path(self._switch.socket_path(self.name)),
                memory_mib=self._memory_mib,
                accelerator=accelerator,
                qmp_fd=theirs.fileno(),
                qemu=self._qemu,
                extra=self._extra,
            )
            self._process = await VmmProcess.start(
                command,
                fds=[theirs.fileno()],
                environment={},
                work_dir=None,
                on_line=lambda _: None,
            )
            qmp = ours.dup()
        try:
            await asyncio.wait_for(self._qmp.open(qmp), _QMP_SECONDS)
        except (TimeoutError, GuestGone):
            await self._process.read_last_words()
            await self._kill()
            raise GuestGone(f"QEMU did not come up\n{self.console_tail()}") from None
        except BaseException:
            await self._kill()
            raise

    async def _kill(self) -> None:
        await self._qmp.close()
        if self._process is not None:
            await self._process.kill()

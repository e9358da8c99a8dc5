"""A guest from an archive that a test made, without our agent: what it says is on its console."""

from collections.abc import Mapping
from pathlib import Path

from vsock.testing._command import QEMU
from vsock.testing._loop import loop_thread
from vsock.testing._process import VmmProcess
from vsock.testing.images import Image
from vsock.vmm import credential_args, qemu_args, uml_args

MEMORY_MIB = 128


class BareGuest:
    """A kernel and an archive, and nothing else."""

    def __init__(
        self,
        image: Image,
        archive: Path,
        socket_path: Path,
        name: str,
        folder: Path,
        *,
        words: str = "",
        firmware: Mapping[str, bytes] | None = None,
    ) -> None:
        if image.vmm == "uml":
            command = [
                *(str(image.kernel), f"initrd={archive}", "root=/dev/ram0", "rdinit=/init"),
                *("quiet", "panic=-1", "con=null", "con0=null,fd:1", f"uml_dir={folder}/"),
                *uml_args(socket_path, name, memory_mib=MEMORY_MIB),
                *words.split(),  # last: they end the kernel's own
            ]
        else:
            command = [
                *(QEMU, "-nodefaults", "-no-user-config", "-display", "none"),
                *("-machine", "q35,accel=tcg", "-cpu", "max"),
                *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
                *("-kernel", str(image.kernel), "-initrd", str(archive)),
                *("-append", f"console=ttyS0 quiet panic=-1 {words}"),
                *qemu_args(socket_path, name, memory_mib=MEMORY_MIB),
                *credential_args(firmware or {}),
            ]
        self.process = loop_thread().call(
            VmmProcess.start(
                command,
                fds=[],
                environment={"TMPDIR": "/dev/shm"} if image.vmm == "uml" else {},
                work_dir=folder,
                on_line=lambda _: None,
            )
        )

    def console(self) -> str:
        """What it has said."""
        return self.process.tail(100)

    def kill(self) -> None:
        """End it."""
        loop_thread().call(self.process.kill())

"""Command lines that boot the guest images under QEMU and User-Mode Linux; pure functions.

Their options for vsock come from `vsock.vmm`, as those that `vsock qemu-args` prints.
"""

from collections.abc import Sequence
from pathlib import Path

from vsock.testing.images import Disk, Image
from vsock.vmm import qemu_args, uml_args

QEMU = "qemu-system-x86_64"


def qemu_command(
    image: Image,
    name: str,
    *,
    vsock_socket: Path | None,
    memory_mib: int,
    accelerator: str,
    agent_fd: int,
    qmp_fd: int,
    qemu: str = QEMU,
    event_queue: bool = False,
    extra: Sequence[str] = (),
) -> list[str]:
    """QEMU with the image, the vsock device, the agent's serial port and QMP, and no other device."""
    device = ["-m", f"{memory_mib}M"]
    if vsock_socket is not None:
        device = qemu_args(vsock_socket, name, memory_mib=memory_mib, event_queue=event_queue)
    return [
        *_machine(qemu, name, accelerator, qmp_fd),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={agent_fd}"),
        *("-device", "virtserialport,chardev=agent,name=vsock.agent"),
        *device,
        *extra,
    ]


def debian_command(
    disk: Disk,
    name: str,
    *,
    vsock_socket: Path,
    memory_mib: int,
    accelerator: str,
    qmp_fd: int,
    qemu: str = QEMU,
    extra: Sequence[str] = (),
) -> list[str]:
    """QEMU with a system on a disk, which it leaves unchanged, the vsock device and QMP."""
    return [
        *_machine(qemu, name, accelerator, qmp_fd),
        *("-smp", "2", "-kernel", str(disk.kernel), "-initrd", str(disk.initramfs)),
        *("-append", "root=/dev/vda rw console=ttyS0 quiet panic=-1"),
        *("-drive", f"if=none,id=disk,format=raw,snapshot=on,file={_doubled(disk.disk)}"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *qemu_args(vsock_socket, name, memory_mib=memory_mib),
        *extra,
    ]


def _machine(qemu: str, name: str, accelerator: str, qmp_fd: int) -> list[str]:
    """A PC without devices; its console is QEMU's standard output."""
    return [
        *(qemu, "-name", name.replace(",", "-"), "-nodefaults", "-no-user-config"),
        *("-display", "none", "-machine", f"q35,accel={accelerator}"),
        *("-cpu", "host" if accelerator == "kvm" else "max"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
    ]


def _doubled(path: Path) -> str:
    return str(path).replace(",", ",,")


def uml_command(
    image: Image,
    name: str,
    *,
    vsock_socket: Path | None,
    memory_mib: int,
    agent_fd: int,
    work_dir: Path,
    extra: Sequence[str] = (),
) -> list[str]:
    """User-Mode Linux with the image, the vsock device and the agent's serial line."""
    device = [f"mem={memory_mib}M"]
    if vsock_socket is not None:
        device = uml_args(vsock_socket, name, memory_mib=memory_mib)
    return [
        str(image.kernel),
        f"initrd={image.initramfs}",
        *("root=/dev/ram0", "rdinit=/init", "quiet", "panic=-1", "lsm=yama"),
        *("con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{agent_fd}"),
        f"uml_dir={work_dir}/",
        *device,
        *extra,
    ]

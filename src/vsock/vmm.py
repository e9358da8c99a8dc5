"""What to add to a VMM's command line so that its guest gets our vsock device.

Pure functions from a socket path and a name to arguments: `vsock qemu-args`, `vsock uml-args`,
`vsock.testing` and the demo all use these, so what is printed for users is what is tested.
Starting a VMM is not done here.

Two things are easy to get wrong by hand, and both end in a device that looks alive and is dead:

- The guest's memory must be shared with us (`share=on`); otherwise QEMU boots, prints `Failed
  initializing vhost-user memory map` and goes on. So the memory is part of these arguments.
- `reconnect=` must not stand on the chardev: it makes the connection asynchronous, and QEMU 7.2
  then fails its own start with `vhost_backend_init failed: Protocol error`. QEMU 11.1 with the
  generic device even aborts, VM and all, when it connects again.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import Final

from vsock.address import CID_HOST
from vsock.runtime import LONGEST_SOCKET_PATH

VIRTIO_ID_VSOCK: Final = 19
"""Device type number of vsock in the virtio specification, section 5."""

DEFAULT_MEMORY_MIB: Final = 512
"""Guest memory when the caller names none."""

MOST_CREDENTIAL_BYTES: Final = 60_000
"""All system credentials of a QEMU guest together, as QEMU has them: its table of the strings has a length of 16 bits."""

MOST_CREDENTIALS: Final = 255
"""Credentials of a guest: SMBIOS counts the strings of a table in a byte."""

__all__ = [
    "DEFAULT_MEMORY_MIB",
    "MOST_CREDENTIALS",
    "MOST_CREDENTIAL_BYTES",
    "VIRTIO_ID_VSOCK",
    "credential_args",
    "notify_credential",
    "qemu_args",
    "ssh_credentials",
    "uml_args",
]

# QEMU must be told what it otherwise knows of a vsock device: three queues, and a configuration space of the CID.
_GENERIC_DEVICE: Final = (
    *("vhost-user-test-device-pci", f"virtio-id={VIRTIO_ID_VSOCK}"),
    *("num_vqs=3", "vq_size=128", "config_size=8"),
)

_NOT_IN_QEMU_ID = re.compile(r"[^A-Za-z0-9_.-]")
_CREDENTIAL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
_CREDENTIAL_TEXT = re.compile(r"[ -~]+")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_BREAKS_UML_PATH = re.compile(r"[\s:\"']")


def qemu_args(
    socket_path: str | PathLike[str],
    name: str,
    *,
    memory_mib: int = DEFAULT_MEMORY_MIB,
    device_options: Sequence[str] = (),
    event_queue: bool = False,
) -> list[str]:
    """Arguments that give a QEMU guest shared memory and the vsock device behind `socket_path`.

    `name` becomes part of the ids of QEMU objects, so several devices can live in one QEMU.
    `device_options` are more properties of the device, such as `"vectors=4"`. With `event_queue` the
    device is QEMU's generic one (QEMU 11.1 and later), which hands over the event queue that
    `vhost-user-vsock-pci` keeps to itself: then changes of the CID reach the guest.
    QEMU merges several `-machine` options, so these arguments can follow one of the user's.

    Raises ValueError for a path or size that QEMU cannot take.
    """
    path = _checked_path(socket_path)
    _check_memory(memory_mib)
    tag = _NOT_IN_QEMU_ID.sub("-", name) or "guest"
    device = [
        *(_GENERIC_DEVICE if event_queue else ["vhost-user-vsock-pci"]),
        f"id=vsock-{tag}",
        f"chardev=vsock-socket-{tag}",
        *device_options,
    ]
    return [
        "-m",
        f"{memory_mib}M",
        "-object",
        f"memory-backend-memfd,id=vsock-memory-{tag},size={memory_mib}M,share=on",
        "-machine",
        f"memory-backend=vsock-memory-{tag}",
        "-chardev",
        # In QEMU's option lists a comma inside a value is written twice.
        f"socket,id=vsock-socket-{tag},path={path.replace(',', ',,')}",
        "-device",
        ",".join(device),
    ]


def uml_args(
    socket_path: str | PathLike[str],
    name: str,
    *,
    memory_mib: int = DEFAULT_MEMORY_MIB,
) -> list[str]:
    """Arguments that give a User-Mode Linux guest its memory and the vsock device.

    `socket_path` is the device's vhost-user socket. `name` becomes UML's own id (`umid=`),
    under which `uml_mconsole` finds the guest.
    UML's memory is a file in `$TMPDIR` or /dev/shm and is always shared; the switch takes it if that is a tmpfs.

    Raises ValueError for a path, name or size that a kernel command line cannot carry.
    """
    path = _checked_path(socket_path)
    _check_memory(memory_mib)
    if _BREAKS_UML_PATH.search(path):
        raise ValueError(
            f"socket path {path!r} has a space, colon or quote, which User-Mode Linux cannot take; "
            "choose another runtime directory (VSOCK_RUNTIME_DIR)"
        )
    tag = _NOT_IN_QEMU_ID.sub("-", name) or "guest"
    return [f"mem={memory_mib}M", f"umid={tag}", f"virtio_uml.device={path}:{VIRTIO_ID_VSOCK}"]


def credential_args(credentials: Mapping[str, str | bytes]) -> list[str]:
    """Arguments with which QEMU hands system credentials (systemd.system-credentials(7)) to its guest.

    `credentials` are values by name, such as `ssh.authorized_keys.root`. They go as strings of the firmware
    (SMBIOS type 11): printable ASCII as it is, any other value in base64. Every user of the host sees the
    arguments of a process, so they are no place for a secret.

    Raises ValueError for a name that systemd does not take, and for more than QEMU does.
    """
    strings = [_credential(name, value) for name, value in credentials.items()]
    size = sum(len(string) + 1 for string in strings)
    if len(strings) > MOST_CREDENTIALS or size > MOST_CREDENTIAL_BYTES:
        raise ValueError(
            f"{len(strings)} credentials of {size} bytes: QEMU hands over {MOST_CREDENTIALS} "
            f"of {MOST_CREDENTIAL_BYTES} bytes at most"
        )
    values = (string.replace(",", ",,") for string in strings)
    return [word for value in values for word in ("-smbios", f"type=11,value={value}")]


def notify_credential(port: int) -> dict[str, str]:
    """The credential by which a systemd guest says that it is ready: to port `port` of the host (CID 2).

    systemd sends the messages of sd_notify(3) there, over a vsock stream each.
    """
    return {"vmm.notify_socket": f"vsock-stream:{CID_HOST}:{port}"}


def ssh_credentials(public_key: str, user: str = "root") -> dict[str, bytes]:
    """The credentials by which a systemd guest lets a key in (systemd.system-credentials(7)).

    `public_key` is a line of authorized_keys. `user` exists in the guest, with its home in /home; root is always
    let in. systemd writes the files at each boot (tmpfiles.d(5)), root's only if there is none.

    Raises ValueError for what is no name of a user.
    """
    if not _USER.fullmatch(user):
        raise ValueError(f"{user!r} is no name of a user")
    line = f"{public_key}\n".encode()
    credentials = {"ssh.authorized_keys.root": line}
    if user != "root":
        # With a colon: only if the directory is made by this line.
        files = (
            f"d /home/{user} :0700 :{user} :{user} -",
            f"d /home/{user}/.ssh :0700 :{user} :{user} -",
            f"f+~ /home/{user}/.ssh/authorized_keys 0600 {user} {user} - {base64.b64encode(line).decode()}",
        )
        credentials["tmpfiles.extra"] = "".join(f"{file}\n" for file in files).encode()
    return credentials


def _credential(name: str, value: str | bytes) -> str:
    if not _CREDENTIAL_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a credential: letters, digits and . _ -")
    if isinstance(value, str) and _CREDENTIAL_TEXT.fullmatch(value):
        return f"io.systemd.credential:{name}={value}"
    data = value.encode() if isinstance(value, str) else value
    return f"io.systemd.credential.binary:{name}={base64.b64encode(data).decode()}"


def _checked_path(socket_path: str | PathLike[str]) -> str:
    path = fspath(socket_path)
    size = len(path.encode())
    if not path or size > LONGEST_SOCKET_PATH:
        raise ValueError(
            f"socket path has {size} bytes, a Unix socket's may have 1 to {LONGEST_SOCKET_PATH}; "
            "choose a shorter runtime directory (VSOCK_RUNTIME_DIR)"
        )
    return path


def _check_memory(memory_mib: int) -> None:
    if memory_mib < 64:
        raise ValueError(f"a Linux guest needs at least 64 MiB of memory, not {memory_mib}")

"""The reference column: a Linux guest whose kernel plays the host.

The guest has no vsock device. vhost_vsock is loaded, which makes its kernel a host with CID 2, and the
guest's driver is unloaded, so that "the host" is the guest itself. The modules are from the packages of
the guest's image; those that the image does not contain are sent with the cases.
"""

import base64
import importlib.util
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vsock import testing
from vsock.testing.images import find_image

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 240

_PLAY_THE_HOST: Final = """
cd /tmp && base64 -d | tar xz
rmmod vmw_vsock_virtio_transport
for module in $(cat order); do insmod $module.ko 2>/dev/null; done
test -e /dev/vhost-vsock
"""

# The guest that never answers has a CID but no running machine: packets to it are never read.
_RUN: Final = """
import fcntl, os, struct, sys
sys.path.insert(0, "/tmp")
device = os.open("/dev/vhost-vsock", os.O_RDWR)
fcntl.ioctl(device, 0xAF01)  # VHOST_SET_OWNER
from tests.oracle import column, env
fcntl.ioctl(device, 0x4008AF60, struct.pack("Q", env.SILENT_CID))  # VHOST_VSOCK_SET_GUEST_CID
sys.argv[:] = ["column", "kernel", *sys.argv[1:]]
column.main()
"""


def run(kernel: str, patterns: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """Boot a guest with this kernel and run the cases there; returns `uname -rv` and the results.

    Raises:
        GuestUnavailable: there is no QEMU, or no image.
        GuestError: the guest or the run in it failed.
    """
    image = find_image("qemu", kernel)
    with testing.QemuGuest(None, "oracle", kernel=kernel) as guest:
        guest.run(_PLAY_THE_HOST, input=base64.b64encode(_baggage(image.kernel.parents[2], image)))
        said = guest.run("uname -rv").stdout.strip()
        done = guest.python(_RUN, *patterns, timeout=SECONDS)
    return said, json.loads(done.stdout)


def _baggage(images: Path, image: testing.Image) -> bytes:
    """A compressed archive of the cases and of the modules that the guest lacks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path in sorted((ROOT / "tests/oracle").rglob("*.py")):
            archive.add(path, path.relative_to(ROOT), filter=_anonymous)
        order = []
        for name, content in _modules(images, image.release):
            _add(archive, f"{name}.ko", content)
            order.append(name)
        _add(archive, "order", " ".join(order).encode())
    return out.getvalue()


def _modules(images: Path, release: str) -> list[tuple[str, bytes]]:
    """vhost_vsock and what it needs, in loading order."""
    trees = list(images.glob(f"unpacked/*/lib/modules/{release}"))
    if len(trees) != 1:
        raise testing.GuestUnavailable(f"no modules of Linux {release} in {images}: make guests")
    spec = importlib.util.spec_from_file_location("guest_modules", ROOT / "guests/modules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.load_order(trees[0], ["vhost_vsock"]))


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry

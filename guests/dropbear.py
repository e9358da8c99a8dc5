"""A small guest: a kernel, busybox, dropbear and socat, as Debian has them, and nothing of ours.

Its first process is busybox's init. Nothing listens in it: its last step is to run the lines in the file `SETUP`, if
there is one. Tests put there what `vsock guest setup --for busybox` prints, in an archive that they append to this one.
"""

from pathlib import Path

from cpio import CpioWriter
from modules import load_order
from recipe import Kernel

NAME = "dropbear"

SETUP = "etc/vsock-setup"

PROGRAMS = {
    "usr/bin/socat": "socat",
    "usr/lib/openssh/sftp-server": "openssh-sftp-server",
    "usr/sbin/dropbear": "dropbear-bin",
}
"""Path in the guest, and the package."""

LIBRARY_PACKAGES = (
    *("libc6", "libcom-err2", "libcrypt1", "libgmp10", "libgssapi-krb5-2", "libk5crypto3"),
    *("libkeyutils1", "libkrb5-3", "libkrb5support0", "libnsl2", "libssl3", "libtirpc3"),
    *("libtomcrypt1", "libtommath1", "libwrap0", "zlib1g"),
)

PACKAGES = tuple(sorted({*PROGRAMS.values(), *LIBRARY_PACKAGES}))

_LIBRARIES = "lib/x86_64-linux-gnu"
_LIBC = ("ld-linux-x86-64.so.2", "libc.so.6", "libresolv.so.2")  # libc6 has more than programs need

_INITTAB = f"""\
::sysinit:/etc/rcS
::once:/bin/sh -c '[ ! -e /{SETUP} ] || sh -e /{SETUP} || echo "init: /{SETUP} ended with status $?"'
"""

_RCS = """\
#!/bin/busybox sh
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
while read -r module; do
    insmod "/lib/modules/$module.ko" || echo "init: cannot load $module"
done </lib/modules/order
"""


def write_initramfs(kernel: Kernel, unpacked: Path, packages: Path, out: Path) -> None:
    """Write the initramfs for `kernel`. `unpacked` has its packages, `packages` all others."""
    partial = out.with_suffix(".partial")
    with partial.open("wb") as stream:
        archive = CpioWriter(stream)
        for folder in ("proc", "sys", "dev", "tmp", "root", "run", "sbin", "usr/bin", "usr/sbin"):
            archive.folder(folder)
        archive.character_device("dev/console", 5, 1)
        archive.link("init", "bin/busybox")
        archive.file("bin/busybox", packages / "busybox-static/bin/busybox")
        archive.data("etc/inittab", _INITTAB.encode())
        archive.data("etc/rcS", _RCS.encode(), executable=True)
        archive.data("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        archive.data("etc/group", b"root:x:0:\n")
        for path, package in sorted(PROGRAMS.items()):
            archive.file(path, packages / package / path)
        # As the package has it; dropbear looks there.
        archive.link("usr/lib/sftp-server", "openssh/sftp-server")
        _add_libraries(archive, packages)
        (tree,) = unpacked.glob(kernel.module_folder)
        order = []
        for name, content in load_order(tree, kernel.modules):
            archive.data(f"lib/modules/{name}.ko", content)
            order.append(name)
        archive.data("lib/modules/order", "".join(f"{name}\n" for name in order).encode())
        archive.close()
    partial.rename(out)


def _add_libraries(archive: CpioWriter, packages: Path) -> None:
    archive.link("lib64", _LIBRARIES)
    for package in LIBRARY_PACKAGES:
        for folder in (_LIBRARIES, f"usr/{_LIBRARIES}"):
            for library in sorted((packages / package / folder).glob("*.so.*")):
                path = f"{_LIBRARIES}/{library.name}"
                if package == "libc6" and library.name not in _LIBC:
                    continue
                if library.is_symlink():
                    archive.link(path, library.readlink().name)
                else:
                    archive.file(path, library)

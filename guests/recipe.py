"""The contents of a guest image: Debian packages, Python's library, kernel modules and `agent.py`. Also a newer QEMU.

An image is a kernel and an uncompressed initramfs. The guest unpacks the initramfs, and on an
emulated CPU decompression takes longer than reading the larger file.
"""

import compileall
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cpio import CpioWriter
from modules import load_order
from suites import BACKPORTS, SID

HERE = Path(__file__).resolve().parent

_PROCESSOR = Path("/proc/cpuinfo")

COMMON_PACKAGES = (
    "busybox-static",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libexpat1",
    "libffi8",
    "zlib1g",
)

MODULES = ("vmw_vsock_virtio_transport", "vsock_loopback", "vsock_diag")


@dataclass(frozen=True)
class Kernel:
    """One kernel that guests are booted with."""

    name: str
    vmm: str
    package: str
    package_pattern: str | None  # matches the real package, on which `package` depends
    kernel_file: str
    module_folder: str
    modules: tuple[str, ...]
    suite: str | None = None  # None: the machine's own
    parts: tuple[str, ...] = (
        "linux-image",
    )  # the packages into which the real one is divided, by the first words of their names

    def packages(self, real: str) -> list[str]:
        """The packages that hold the kernel and its modules."""
        return [real.replace("linux-image", part, 1) for part in self.parts]


QEMU_MODULES = ("virtio_pci", "virtio_console", "virtio_net", *MODULES)

DEMO_KERNELS = (
    Kernel(
        name="6.1",
        vmm="qemu",
        package="linux-image-cloud-amd64",
        package_pattern=r"linux-image-6\.1\.\S+-cloud-amd64",
        kernel_file="boot/vmlinuz-*",
        module_folder="lib/modules/*",
        modules=QEMU_MODULES,
    ),
    Kernel(
        name="uml",
        vmm="uml",
        package="user-mode-linux",
        package_pattern=None,
        kernel_file="usr/bin/linux.uml",
        module_folder="usr/lib/uml/modules/*",
        modules=MODULES,
    ),
)

# "new" is the newest kernel that Debian has for its stable release, "uml-new" that of its development branch.
TEST_KERNELS = (
    Kernel(
        name="6.12",
        vmm="qemu",
        package="linux-image-6.12-cloud-amd64",
        package_pattern=r"linux-image-6\.12\.\S+-cloud-amd64",
        kernel_file="boot/vmlinuz-*",
        module_folder="lib/modules/*",
        modules=QEMU_MODULES,
    ),
    Kernel(
        name="new",
        vmm="qemu",
        package="linux-image-cloud-amd64",
        package_pattern=r"linux-image-\d\S+-cloud-amd64",
        kernel_file="usr/lib/modules/*/vmlinuz",
        module_folder="usr/lib/modules/*",
        modules=QEMU_MODULES,
        suite=BACKPORTS,
        parts=("linux-base", "linux-binary", "linux-modules"),
    ),
    Kernel(
        name="uml-new",
        vmm="uml",
        package="user-mode-linux",
        package_pattern=None,
        kernel_file="usr/bin/linux.uml",
        module_folder="usr/lib/uml/modules/*",
        modules=MODULES,
        suite=SID,
    ),
)


def wanted_kernels(for_tests: bool) -> tuple[Kernel, ...]:
    """The kernels of this machine's images: those that the demo boots, or all that the tests boot.

    User-Mode Linux 6.1 panics at its first process on a processor with AMX ("ptrace set fp regs failed"): its
    buffer for registers is too small. On such a machine the newer one replaces it.
    """
    kernels = DEMO_KERNELS + TEST_KERNELS if for_tests else DEMO_KERNELS
    if "amx_tile" not in _PROCESSOR.read_text().split():
        return kernels
    newer_uml = TEST_KERNELS[-1]
    kept = [kernel for kernel in kernels if kernel.name not in ("uml", newer_uml.name)]
    return (*kept, newer_uml)


NEWER_QEMU = "qemu-system-x86"
"""From the suite `BACKPORTS`, with all its libraries."""

# Starts QEMU with the loader of its own suite: this machine's C library may be older.
_QEMU_SCRIPT = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
usr=$here/{root}/usr
libraries=$usr/lib/x86_64-linux-gnu
# Keep this QEMU from loading the modules of an installed one.
export QEMU_MODULE_DIR="$here"
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \\
    "$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios" "$@"
"""

# Parts of the standard library that guests under test do not use, or whose C libraries they lack.
_LEFT_OUT = frozenset(
    {
        *("test", "unittest", "doctest.py", "pydoc.py", "pydoc_data", "distutils", "ensurepip"),
        *("lib2to3", "idlelib", "venv", "tkinter", "turtle.py", "turtledemo", "curses", "sqlite3"),
        *("dbm", "ssl.py", "wsgiref", "xmlrpc", "__phello__", "antigravity.py"),
    }
)
_EXTENSIONS = frozenset(
    {
        *("_asyncio", "_contextvars", "_ctypes", "_decimal", "_json", "_multiprocessing", "mmap"),
        *("_posixshmem", "_queue", "_typing", "_zoneinfo", "resource", "termios"),
    }
)
_STDLIB = "usr/lib/python3.11"
_LIBRARIES = (
    ("libc6", "lib/x86_64-linux-gnu", ("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6")),
    ("libexpat1", "lib/x86_64-linux-gnu", ("libexpat.so.1",)),
    ("libffi8", "usr/lib/x86_64-linux-gnu", ("libffi.so.8",)),
    ("zlib1g", "lib/x86_64-linux-gnu", ("libz.so.1",)),
)


def compiled_stdlib(packages: Path, into: Path) -> Path:
    """The standard library as one folder of .pyc files, without `_LEFT_OUT`.

    Compiling in the guest would take seconds of every boot. Only Python 3.11 can compile for the
    guest's 3.11; with another version here the image contains the sources, and booting takes longer.
    """
    shutil.rmtree(into, ignore_errors=True)
    for package in ("libpython3.11-minimal", "libpython3.11-stdlib"):
        shutil.copytree(
            packages / package / _STDLIB,
            into,
            ignore=_ignored,
            ignore_dangling_symlinks=True,
            dirs_exist_ok=True,
        )
    shutil.copyfile(HERE / "agent.py", into / "vsock_guest_agent.py")
    if sys.version_info[:2] == (3, 11):
        # The prefix is where the file will be in the guest, so that tracebacks name it.
        compiled = compileall.compile_dir(
            into, quiet=1, legacy=True, stripdir=str(into), prependdir=f"/{_STDLIB}"
        )
        if not compiled:
            raise OSError(f"cannot compile the Python sources in {into}, see above")
        for source in into.rglob("*.py"):
            source.unlink()
    return into


def write_initramfs(
    kernel: Kernel, unpacked: Path, packages: Path, stdlib: Path, out: Path
) -> None:
    """Write the initramfs of `kernel`. `unpacked` has its packages, `packages` all others."""
    partial = out.with_suffix(".partial")
    with partial.open("wb") as stream:
        archive = CpioWriter(stream)
        for folder in ("proc", "sys", "dev", "tmp", "root", "run", "etc"):
            archive.folder(folder)
        archive.character_device("dev/console", 5, 1)
        _add_programs(archive, packages)
        for path in sorted(stdlib.rglob("*")):
            if path.is_file():
                archive.file(f"{_STDLIB}/{path.relative_to(stdlib)}", path)
        (tree,) = unpacked.glob(kernel.module_folder)
        order = []
        for name, content in load_order(tree, kernel.modules):
            archive.data(f"lib/modules/{name}.ko", content)
            order.append(name)
        archive.data("lib/modules/order", "".join(f"{name}\n" for name in order).encode())
        archive.close()
    partial.rename(out)


def kernel_image(kernel: Kernel, unpacked: Path) -> tuple[Path, str]:
    """The kernel's file, and its release as `uname -r` gives it."""
    (file,) = unpacked.glob(kernel.kernel_file)
    (tree,) = unpacked.glob(kernel.module_folder)
    return file, tree.name


def with_libraries(program: Path, patchelf: Path, libraries: Path, out: Path) -> None:
    """Write `program` to `out` so that it always runs with the C library in `libraries`.

    A script that starts the loader is not enough, because User-Mode Linux executes itself again.
    """
    loader = libraries / "ld-linux-x86-64.so.2"
    shutil.copyfile(program, out)
    out.chmod(0o755)
    command = [patchelf, "--set-interpreter", loader, "--set-rpath", libraries, out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"patchelf cannot change {program.name}: {done.stderr.strip()}")


def write_qemu(root: Path, out: Path) -> str:
    """Write the script `out` that runs the QEMU unpacked in `root`; returns its version."""
    for unused in ("share/doc", "share/man", "share/locale", "lib/x86_64-linux-gnu/qemu"):
        shutil.rmtree(root / "usr" / unused, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_QEMU_SCRIPT.format(root=os.path.relpath(root, out.parent)))
    out.chmod(0o755)
    done = subprocess.run([out, "--version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    if done.returncode != 0 or len(words) < 4:
        raise OSError(f"the QEMU in {root} does not run: {done.stderr.strip()}")
    return words[3]


def _add_programs(archive: CpioWriter, packages: Path) -> None:
    archive.file("init", HERE / "init")
    busybox = packages / "busybox-static/bin/busybox"
    archive.file("bin/busybox", busybox)
    for applet in (HERE / "applets").read_text().split():
        archive.link(f"bin/{applet}", "busybox")
    archive.file("usr/bin/python3.11", packages / "python3.11-minimal/usr/bin/python3.11")
    archive.link("usr/bin/python3", "python3.11")
    for package, folder, names in _LIBRARIES:
        for name in names:
            # resolve(): the name is a link to the versioned file.
            archive.file(
                f"lib/x86_64-linux-gnu/{name}", (packages / package / folder / name).resolve()
            )
    archive.link("lib64", "lib/x86_64-linux-gnu")
    archive.data("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    archive.data("etc/group", b"root:x:0:\n")


def _ignored(folder: str, names: list[str]) -> set[str]:
    if Path(folder).name == "lib-dynload":
        return {name for name in names if name.partition(".")[0] not in _EXTENSIONS}
    if Path(folder).name in ("python3.11", "__pycache__"):
        return {name for name in names if name in _LEFT_OUT or name == "__pycache__"}
    return {name for name in names if name in ("__pycache__", "tests")}

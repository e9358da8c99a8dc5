"""A Debian 13 machine as a disk image: systemd, OpenSSH's server and a kernel, as Debian has them, and nothing of ours.

mmdebstrap, a program of this machine's own Debian, installs the packages in a folder. It needs no root where
users may have namespaces. `fakeroot` keeps the owners of the files until mke2fs has written them to the disk.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from packages import PackageMissing
from suites import STABLE, source_of

NAME = "debian13"

TOOLS = {"mmdebstrap": "mmdebstrap", "fakeroot": "fakeroot", "mke2fs": "e2fsprogs"}
"""Programs that make the image, and their packages."""

PACKAGES = (
    *("linux-image-cloud-amd64", "openssh-server", "systemd-sysv", "udev"),
    # Programs of the host run these by ssh; Ansible needs Python.
    *("git", "python3", "rsync"),
    "sshfs",  # for `vsock share`
)

_SIZE = "4G"
"""Of the disk: a sparse file."""

_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

# The devices are made by the guest's kernel.
_WRITE_DISK = """\
set -e
tar -xf "$1" -C "$2" --exclude='./dev/*'
echo "$3" >"$2/etc/hostname"
: >"$2/etc/resolv.conf"
mke2fs -q -t ext4 -L "$3" -d "$2" "$4" "$5"
"""


def write_disk(into: Path) -> dict[str, str]:
    """Write the files `kernel`, `initramfs` and `disk` to the folder `into`; returns name -> version of `PACKAGES`."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise PackageMissing(f"its tools are missing: apt-get install {' '.join(missing)}")
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="guest-", dir=into) as folder:
        archive, root, disk = (Path(folder) / name for name in ("root.tar", "root", "disk"))
        _install(archive)
        root.mkdir()
        _run("fakeroot", "sh", "-c", _WRITE_DISK, "sh", archive, root, NAME, disk, _SIZE)
        for name, pattern in (("kernel", "vmlinuz-*"), ("initramfs", "initrd.img-*")):
            (file,) = (root / "boot").glob(pattern)
            file.rename(into / name)
        versions = _versions(root / "var/lib/dpkg/status")
        disk.rename(into / "disk")
    return versions


def _install(archive: Path) -> None:
    """Install the packages, and write the whole system to `archive`. Prints what is done: it takes a minute."""
    command = [
        *("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT),
        # An outdated mirror has an expired Release file, which is still signed.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *(STABLE, str(archive), source_of(STABLE)),
    ]
    said = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr
        for line in process.stderr:
            said = line.strip() or said
            if said.startswith("I: ") and said.endswith("..."):
                print(f"guests:   {said.removeprefix('I: ')}", flush=True)
    if process.returncode != 0:
        raise PackageMissing(f"mmdebstrap: {said}")


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise OSError(f"{command[0]}: {words[-1]}")


def _versions(status: Path) -> dict[str, str]:
    """The versions of `PACKAGES` in dpkg's list of what is installed."""
    found = re.findall(
        r"^Package: (\S+)\n(?:.+\n)*?Version: (\S+)$", status.read_text(), re.MULTILINE
    )
    return {name: version for name, version in found if name in PACKAGES}

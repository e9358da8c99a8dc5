"""Finds the guest images that `guests/fetch` has made."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vsock.testing.errors import GuestUnavailable

Vmm = Literal["qemu", "uml"]

ENVIRONMENT_VARIABLE = "VSOCK_GUEST_IMAGES"
"""Environment variable: the folder with the images; by default build/guests above this file or the current folder."""

_HOW = f"run `make guests` in the source tree, or set {ENVIRONMENT_VARIABLE}"


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel and its initramfs."""

    name: str
    vmm: Vmm
    release: str
    kernel: Path
    initramfs: Path


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole system on a disk (raw), and its kernel and initramfs, with which QEMU boots it."""

    kernel: Path
    initramfs: Path
    disk: Path


def find_image(vmm: Vmm, kernel: str | None = None) -> Image:
    """The image for this VMM.

    Args:
        vmm: "qemu" or "uml".
        kernel: "6.1", "6.12" or "new" for QEMU; "new" for User-Mode Linux; None for the first. "new" is the newest
            in any suite of Debian.

    Raises:
        GuestUnavailable: there is none; the message says how to get it.
    """
    images = [image for image in find_images() if image.vmm == vmm]
    if kernel is not None:
        name = kernel if vmm == "qemu" else f"{vmm}-{kernel}"
        images = [image for image in images if image.name == name]
    if not images:
        wanted = vmm if kernel is None else f"{vmm} {kernel}"
        raise GuestUnavailable(f"no image of a {wanted} guest: {_HOW}")
    return images[0]


def find_newer_qemu() -> Path:
    """The newest QEMU of Debian, which runs without installation.

    Raises:
        GuestUnavailable: there is none; the message says how to get it.
    """
    return _find("qemu", "newer QEMU")


def find_debian() -> Disk:
    """Debian 13, as its packages make it: systemd, and sshd, which listens on vsock.

    Raises:
        GuestUnavailable: there is none; the message says how to get it.
    """
    folder = _find("debian13", "image of Debian 13")
    return Disk(*(folder / name for name in ("kernel", "initramfs", "disk")))


def find_dropbear() -> Image:
    """A small system for User-Mode Linux: busybox, dropbear and socat, none of which listens unless it is told to.

    Raises:
        GuestUnavailable: there is none; the message says how to get it.
    """
    archive = _find("dropbear", "image with dropbear")
    for image in find_images():
        if image.kernel.parent == archive.parent:
            return replace(image, initramfs=archive)
    raise GuestUnavailable(f"no kernel for {archive}: {_HOW}")


def find_programs() -> Path:
    """The archive (tar) of programs that can be unpacked in a running guest: sshd, socat, and so on.

    Raises:
        GuestUnavailable: there is none; the message says how to get it.
    """
    for folder in _folders():
        if (folder / "programs.tar").exists():
            return folder / "programs.tar"
    raise GuestUnavailable(f"no programs for guests: {_HOW}")


def find_images() -> list[Image]:
    """All existing images; empty if there are none."""
    for folder in _folders():
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            return [_image(name, entry, folder) for name, entry in manifest["images"].items()]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # missing, or left by an interrupted build
    return []


def _find(entry: str, title: str) -> Path:
    """The path that is an entry of a manifest."""
    for folder in _folders():
        try:
            found: Path = folder / json.loads((folder / "manifest.json").read_text())[entry]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return found
    raise GuestUnavailable(f"no {title}: {_HOW}")


def _image(name: str, entry: dict[str, Any], folder: Path) -> Image:
    return Image(
        name=name,
        vmm=entry["vmm"],
        release=entry["release"],
        kernel=folder / entry["kernel"],
        initramfs=folder / entry["initramfs"],
    )


def _folders() -> Iterator[Path]:
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen:
        yield Path(chosen)
        return
    here = Path(__file__).resolve()
    for root in (*here.parents, Path.cwd(), *Path.cwd().parents):
        yield root / "build/guests"

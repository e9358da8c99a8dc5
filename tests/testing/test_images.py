"""Finding images, and the messages if there are none."""

import json
from pathlib import Path

import pytest

from vsock.testing.errors import GuestUnavailable
from vsock.testing.images import (
    ENVIRONMENT_VARIABLE,
    find_image,
    find_images,
    find_newer_qemu,
)

MANIFEST = {
    "images": {
        name: {"vmm": vmm, "release": f"{name}.0", "kernel": "k", "initramfs": "i"}
        for name, vmm in (
            *(("6.1", "qemu"), ("6.12", "qemu"), ("uml", "uml")),
            *(("new", "qemu"), ("uml-new", "uml")),
        )
    },
    "qemu": "qemu/qemu-system-x86_64",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest, named in the environment."""
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    return tmp_path


def test_kernel_is_found_by_name_and_defaults_to_the_first(folder: Path) -> None:
    """The paths are in the folder."""
    assert find_image("qemu").name == "6.1"
    image = find_image("qemu", "6.12")
    assert (image.release, image.kernel) == ("6.12.0", folder / "k")
    assert find_image("uml").name == "uml"
    assert [find_image(vmm, "new").name for vmm in ("qemu", "uml")] == ["new", "uml-new"]
    assert find_newer_qemu() == folder / "qemu/qemu-system-x86_64"


def test_unknown_kernel_says_how_to_get_images(folder: Path) -> None:
    """The message is the reason of the skip for users of the fixtures."""
    with pytest.raises(GuestUnavailable, match=r"no image of a qemu 5\.4 guest: run `make guests`"):
        find_image("qemu", "5.4")
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | {"qemu": None}))
    with pytest.raises(GuestUnavailable, match="no newer QEMU: run `make guests`"):
        find_newer_qemu()


@pytest.mark.parametrize("content", ["", "{", '"text"'])
def test_broken_manifest_means_no_images(folder: Path, content: str) -> None:
    """As after an interrupted build."""
    (folder / "manifest.json").write_text(content)
    assert find_images() == []

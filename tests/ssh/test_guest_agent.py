"""`vsock guest agent`: what it puts into archives and root file systems. That kernels take the archives: tests/guests/test_sshd.py."""

import os
import stat
import subprocess
from pathlib import Path

import asyncssh
import pytest
from tests.archives import members

from vsock.cli.main import main
from vsock.ssh.guest_server import PROGRAM
from vsock.ssh.identity import Identity

KEYS = "etc/vsock-sshd/authorized_keys"
HOST_KEY = "etc/vsock-sshd/host_key"


def test_archive_has_the_program_and_the_keys(tmp_path: Path) -> None:
    """Only its owner can read it: the host key is in it."""
    archive = tmp_path / "agent.cpio"
    assert main(["guest", "agent", "--cpio", "-o", str(archive)]) == 0
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert archive.stat().st_size % 512 == 0
    found = dict(members(archive))
    assert {"usr", "usr/lib", "usr/lib/vsock", PROGRAM, "etc", "etc/vsock-sshd"} <= set(found)
    assert "init" not in found
    assert found[PROGRAM].startswith(b"\x7fELF")
    assert found[KEYS].decode() == f"{Identity.of_user().public_key()}\n"
    assert asyncssh.import_private_key(found[HOST_KEY]).get_algorithm() == "ssh-ed25519"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_archive_with_init_has_a_console_and_the_modules_in_order(tmp_path: Path) -> None:
    """Modules must not be compressed, which only modprobe undoes."""
    modules = []
    for name in ("z.ko", "a.ko"):
        (tmp_path / name).write_bytes(b"\x7fELF" + name.encode())
        modules.append(f"--module={tmp_path / name}")
    archive = tmp_path / "agent.cpio"
    assert main(["guest", "agent", "--cpio", "--init", f"-o{archive}", *modules]) == 0
    found = dict(members(archive))
    assert found["init"] == f"/{PROGRAM}".encode()
    assert "dev/console" in found
    names = [name for name in found if name.startswith("usr/lib/vsock/modules/")]
    assert [name.rpartition("/")[2] for name in names] == ["00-z.ko", "01-a.ko"]


def test_compressed_module_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is written."""
    (tmp_path / "x.ko.xz").write_bytes(b"\xfd7zXZ")
    arguments = ["--cpio", "--init", f"--module={tmp_path / 'x.ko.xz'}", f"-o{tmp_path / 'out'}"]
    assert main(["guest", "agent", *arguments]) == 1
    assert "unpack it first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_root_file_system_gets_the_files_and_keeps_its_host_key(tmp_path: Path) -> None:
    """A second time replaces the program and the keys."""
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    assert main(["guest", "agent", "--into", str(root), "--init"]) == 0
    key = (root / HOST_KEY).read_bytes()
    assert stat.S_IMODE((root / HOST_KEY).stat().st_mode) == 0o600
    (root / KEYS).write_text("changed")
    (root / PROGRAM).write_text("changed")
    assert main(["guest", "agent", "--into", str(root), "--init"]) == 0
    assert (root / HOST_KEY).read_bytes() == key
    assert (root / KEYS).read_text() == f"{Identity.of_user().public_key()}\n"
    assert (root / "init").readlink() == Path(f"/{PROGRAM}")
    said = subprocess.run([root / PROGRAM, "--version"], capture_output=True, check=True).stdout
    assert said.startswith(b"vsock-sshd ")


def test_init_of_somebody_else_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error says how the guest is booted all the same."""
    (tmp_path / "init").write_text("#!/bin/sh\n")
    assert main(["guest", "agent", "--into", str(tmp_path), "--init"]) == 1
    assert f"init=/{PROGRAM}" in capsys.readouterr().err
    assert (tmp_path / "init").read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("link", ["usr", "usr/lib", "etc", "etc/vsock-sshd"])
def test_links_of_a_root_file_system_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str
) -> None:
    """Nor is what is at the end of a link in the place of a file."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / link).parent.mkdir(parents=True)
    outside.mkdir()
    (root / link).symlink_to(outside)
    assert main(["guest", "agent", "--into", str(root)]) == 1
    assert "links are not followed" in capsys.readouterr().err
    assert list(outside.iterdir()) == []


def test_link_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    """Its target stays as it is."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / KEYS).parent.mkdir(parents=True)
    outside.write_text("mine")
    (root / KEYS).symlink_to(outside)
    assert main(["guest", "agent", "--into", str(root)]) == 0
    assert outside.read_text() == "mine"
    assert not (root / KEYS).is_symlink()


@pytest.mark.parametrize("kind", ["link", "fifo", "file"])
def test_what_has_the_temporary_name_is_not_written_to(tmp_path: Path, kind: str) -> None:
    """A FIFO stands for a device too; a file may be another user's, whose it would stay."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / KEYS).parent.mkdir(parents=True)
    outside.write_text("mine")
    prepared = (root / KEYS).with_name(".authorized_keys.new")
    match kind:
        case "link":
            prepared.symlink_to(outside)
        case "fifo":
            os.mkfifo(prepared)
        case _:
            prepared.hardlink_to(outside)
    assert main(["guest", "agent", "--into", str(root)]) == 0
    assert outside.read_text() == "mine"
    assert (root / KEYS).read_text() == f"{Identity.of_user().public_key()}\n"
    assert (root / KEYS).lstat().st_nlink == 1
    assert not os.path.lexists(prepared)


def test_folders_can_be_entered_whatever_the_umask_is(tmp_path: Path) -> None:
    """The guest's other users need /usr and /etc; a folder that was there keeps its mode."""
    (tmp_path / "usr").mkdir(mode=0o711)
    before = os.umask(0o077)
    try:
        assert main(["guest", "agent", "--into", str(tmp_path)]) == 0
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("usr", "usr/lib", "usr/lib/vsock", "etc", "etc/vsock-sshd")
    }
    assert modes.pop("usr") == 0o711
    assert set(modes.values()) == {0o755}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --cpio or --into"),
        (["--cpio", "--into", "."], "give --cpio or --into"),
        (["--into", ".", "-o", "x"], "--output is for --cpio"),
        (["--cpio", "--module", os.devnull], "--module is for --init"),
    ],
)
def test_wrong_combinations_are_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As wrong usage."""
    assert main(["guest", "agent", *arguments]) == 2
    assert said in capsys.readouterr().err

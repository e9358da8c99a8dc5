"""`vsock mount` with a stock Debian 13: its sshd and sftp-server, and the sshfs of this host."""

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guests.debian_commands import SECONDS, in_guest, run

from vsock.ssh.mounts import mount_at
from vsock.testing.plugin import DEBIAN

SIZE = 5 << 20


pytestmark = [pytest.mark.usefixtures("debian_user"), pytest.mark.programs("sshfs", "fusermount3")]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount at."""
    (tmp_path / "folder").mkdir()
    yield tmp_path / "folder"
    if mount_at(str(tmp_path / "folder")):
        subprocess.run(["fusermount3", "-uz", str(tmp_path / "folder")], check=True)


def test_folder_of_the_guest_is_here_and_comes_back(folder: Path) -> None:
    """Files go both ways whole, over vsock; links out are refused; a killed sftp-server is started again."""
    run("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    in_guest("mkdir /tmp/shared; ln -s /etc/passwd /tmp/shared/out; ln -s big /tmp/shared/in")
    run("mount", "--reconnect", f"{DEBIAN}:/tmp/shared", str(folder))
    # Its standard input is no pipe and no Unix socket, which it would be as a child of sshd.
    socket = "inode=$(readlink /proc/$(pidof sftp-server)/fd/0 | tr -dc 0-9); test $inode"
    assert in_guest(f"{socket}; grep -c $inode /proc/net/unix || true") == "0"
    data = os.urandom(SIZE)
    (folder / "big").write_bytes(data)
    assert in_guest("sha256sum < /tmp/shared/big") == f"{hashlib.sha256(data).hexdigest()}  -"
    assert (folder / "in").read_bytes() == data
    with pytest.raises(PermissionError):
        (folder / "out").read_bytes()
    in_guest("mkdir /tmp/shared/new; echo text > /tmp/shared/new/file; kill $(pidof sftp-server)")
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            assert (folder / "new/file").read_text() == "text\n"
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    run("umount", str(folder))
    assert list(folder.iterdir()) == []
    in_guest("rm -r /tmp/shared")

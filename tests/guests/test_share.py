"""`vsock share` with a stock Debian 13: its sshd and sshfs, and a folder of this host."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.debian_commands import SECONDS, in_guest, run

from vsock.testing.plugin import DEBIAN

SIZE = 5 << 20

pytestmark = pytest.mark.usefixtures("debian_user")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of this host, with a file and a link that leads out."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(SIZE))
    (folder / "folder").mkdir()
    (folder / "folder/in").symlink_to("../file")
    (folder / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("of the host")
    return folder


def shared() -> list[dict[str, object]]:
    """The listing."""
    found: list[dict[str, object]] = json.loads(run("share", "--json"))
    return found


def until(condition: Callable[[], object]) -> None:
    """Wait for something that the guest does."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_folder_of_this_host_is_in_the_guest(here: Path) -> None:
    """Read-only over a plain connection; then writable for all users; each is gone when it was taken away."""
    run("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    run("share", "--background", str(here), f"{DEBIAN}:/srv/shared")
    (record,) = shared()
    assert (record["guest"], record["path"], record["read_only"]) == (DEBIAN, "/srv/shared", True)
    digest = hashlib.sha256((here / "file").read_bytes()).hexdigest()
    assert in_guest("sha256sum < /srv/shared/file") == f"{digest}  -"
    assert in_guest("sha256sum < /srv/shared/folder/in") == f"{digest}  -"
    assert in_guest("cat /srv/shared/out 2>&1 || true").endswith("No such file or directory")
    assert in_guest("touch /srv/shared/new 2>&1 || true").endswith("Read-only file system")
    # Its standard input is no pipe and no Unix socket, which it would be as a child of sshd.
    socket = "inode=$(readlink /proc/$(pidof sshfs)/fd/0 | tr -dc 0-9); test $inode"
    assert in_guest(f"{socket}; grep -c $inode /proc/net/unix || true") == "0"
    run("unshare", f"{DEBIAN}:/srv/shared")
    assert shared() == []
    assert in_guest("ls -A /srv/shared; pidof sshfs || true") == ""

    run("share", "--background", "--writable", "--all-users", str(here), f"{DEBIAN}:/srv/shared")
    in_guest("cd /srv/shared; mkdir new; cp file new/copy; chmod 600 new/copy; mv new/copy moved")
    assert (here / "moved").read_bytes() == (here / "file").read_bytes()
    assert (here / "moved").stat().st_mode & 0o7777 == 0o600
    assert (here / "moved").stat().st_uid == os.getuid()
    (here / "file").write_text("changed here")
    until(lambda: in_guest("runuser -u nobody cat /srv/shared/file") == "changed here")
    in_guest("umount /srv/shared")
    until(lambda: shared() == [])


def test_share_comes_back_with_the_guest(here: Path) -> None:
    """When it has rebooted: a command that waits for that says so, and one that does not ends with a line."""
    run("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    words = [sys.executable, "-m", "vsock.cli", "share", str(here)]
    lost = f"vsock: {DEBIAN}:/srv/once: not shared any more: the session with it ended\n"
    with (
        subprocess.Popen([*words, f"{DEBIAN}:/srv/once"], stderr=subprocess.PIPE, text=True) as one,
        subprocess.Popen(
            [*words, "--reconnect", f"{DEBIAN}:/srv/again"], stderr=subprocess.PIPE, text=True
        ) as again,
    ):
        try:
            assert one.stderr
            assert again.stderr
            assert one.stderr.readline().endswith("(read-only)\n")
            assert again.stderr.readline().endswith("(read-only)\n")
            in_guest("systemd-run --on-active=1 systemctl reboot 2>&1")
            assert one.stderr.read() == lost
            assert one.wait(SECONDS) == 1
            assert again.stderr.readline().endswith("when the guest is back\n")
            said = ""
            while not said.endswith("(read-only)\n"):
                said = again.stderr.readline()
                assert said
            in_guest("ls /srv/again/file")
            again.terminate()
            assert again.wait(SECONDS) == 0
            assert in_guest("ls -A /srv/again") == ""
        finally:
            one.kill()
            again.kill()

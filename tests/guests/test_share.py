"""`vsock share` with a stock Debian 13: its sshd and sshfs, and a folder of this host.

A login takes an emulated guest seconds, and so does each program that it starts: commands run in a session that is kept
open, several lines at once. What `vsock share` does without --reconnect when the guest goes is tested in
tests/cli/test_share.py.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guests.debian_commands import SECONDS, in_guest, run
from tests.waiting import until

from vsock.testing.plugin import DEBIAN

SIZE = 5 << 20


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


@pytest.fixture(autouse=True)
def kept_session(debian_user: None) -> Iterator[None]:
    """`in_guest` needs no login."""
    run("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    run("session", "open", DEBIAN)
    yield
    # After a reboot it is another one, or none.
    run("session", "open", DEBIAN)
    run("session", "close", DEBIAN)


def shared() -> list[dict[str, object]]:
    """The listing."""
    found: list[dict[str, object]] = json.loads(run("share", "--json"))
    return found


def test_folder_of_this_host_is_in_the_guest(here: Path) -> None:
    """Read-only over a plain connection; then writable for all users; each is gone when it was taken away."""
    run("share", "--background", str(here), f"{DEBIAN}:/srv/shared")
    (record,) = shared()
    assert (record["guest"], record["path"], record["read_only"]) == (DEBIAN, "/srv/shared", True)
    digest = hashlib.sha256((here / "file").read_bytes()).hexdigest()
    said = in_guest(
        "cd /srv/shared; sha256sum < file; sha256sum < folder/in; cat out 2>&1; touch new 2>&1;"
        # Its standard input is no pipe and no Unix socket, which it would be as a child of sshd.
        "inode=$(readlink /proc/$(pidof sshfs)/fd/0 | tr -dc 0-9); test $inode &&"
        "grep -c $inode /proc/net/unix || true"
    ).splitlines()
    assert said[:2] == [f"{digest}  -"] * 2
    assert said[2].endswith("No such file or directory")
    assert said[3].endswith("Read-only file system")
    assert said[4:] == ["0"]
    run("unshare", f"{DEBIAN}:/srv/shared")
    assert shared() == []
    assert in_guest("ls -A /srv/shared; pidof sshfs || true") == ""

    run("share", "--background", "--writable", "--all-users", str(here), f"{DEBIAN}:/srv/shared")
    in_guest("cd /srv/shared; mkdir new; cp file new/copy; chmod 600 new/copy; mv new/copy moved")
    assert (here / "moved").read_bytes() == (here / "file").read_bytes()
    assert (here / "moved").stat().st_mode & 0o7777 == 0o600
    assert (here / "moved").stat().st_uid == os.getuid()
    (here / "file").write_text("changed here")
    until(lambda: in_guest("runuser -u nobody cat /srv/shared/file") == "changed here", SECONDS)
    in_guest("umount /srv/shared")
    until(lambda: shared() == [], SECONDS)


def test_share_comes_back_with_the_guest(here: Path) -> None:
    """When it has rebooted, with a line for each."""
    words = [sys.executable, "-m", "vsock.cli", "share", "--reconnect", str(here)]
    with subprocess.Popen(
        [*words, f"{DEBIAN}:/srv/again"], stderr=subprocess.PIPE, text=True
    ) as again:
        try:
            assert again.stderr
            assert again.stderr.readline().endswith("(read-only)\n")
            # Of its own, when this command has ended; a timer may be a minute late.
            in_guest("systemd-run sh -c 'sleep 1; systemctl reboot --force' 2>&1")
            assert again.stderr.readline().endswith("when the guest is back\n")
            said = ""
            while not said.endswith("(read-only)\n"):
                said = again.stderr.readline()
                assert said
            run("session", "open", DEBIAN)
            in_guest("ls /srv/again/file")
            again.terminate()
            assert again.wait(SECONDS) == 0
            assert in_guest("ls -A /srv/again") == ""
        finally:
            again.kill()

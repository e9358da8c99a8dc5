"""`vsock cp` with a stock Debian 13: its sshd and sftp-server, and nothing of ours."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.guests.debian_commands import SECONDS, in_guest, run

import vsock
from vsock.ssh.copying.streams import STREAM_FROM
from vsock.testing.plugin import DEBIAN

SIZE = 5 << 20


pytestmark = pytest.mark.usefixtures("debian_user")


def test_tree_with_a_large_file_goes_there_and_back(tmp_path: Path) -> None:
    """Modes, times, links and contents are the same, by the guest's own programs."""
    words = ("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    subprocess.run([sys.executable, "-m", "vsock.cli", *words], check=True)
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    data = os.urandom(SIZE)
    (tree / "inner/big").write_bytes(data)
    (tree / "inner/big").chmod(0o640)
    (tree / "link").symlink_to("inner/big")
    (tree / "a b;\n").write_bytes(b"odd name")
    os.utime(tree / "inner/big", (1_000_000_000, 1_000_000_000))
    os.utime(tree, (1_100_000_000, 1_100_000_000))
    result = json.loads(run("cp", "--json", str(tree), f"{DEBIAN}:/tmp/there"))
    names = ("files", "folders", "links", "bytes", "failed", "notes", "over_ssh")
    assert [result[name] for name in names] == [2, 2, 1, SIZE + 8, 0, [], []]
    assert in_guest("cd /tmp/there; sha256sum < inner/big; stat -c '%a %Y' inner/big") == (
        f"{hashlib.sha256(data).hexdigest()}  -\n640 1000000000"
    )
    assert in_guest("stat -c %Y /tmp/there; readlink /tmp/there/link; ls -A /tmp/there/inner") == (
        "1100000000\ninner/big\nbig"
    )
    run("cp", f"{DEBIAN}:/tmp/there", str(tmp_path / "back"))
    back = tmp_path / "back"
    assert (back / "inner/big").read_bytes() == data
    assert (back / "inner/big").stat().st_mode & 0o777 == 0o640
    assert (back / "inner/big").stat().st_mtime == 1_000_000_000
    assert (back / "link").readlink() == Path("inner/big")
    assert sorted(path.name for path in back.iterdir()) == ["a b;\n", "inner", "link"]
    in_guest("rm -r /tmp/there")


def test_ssh_carries_the_data_where_it_is_asked_for(tmp_path: Path) -> None:
    """Both ways bring the same bytes."""
    data = os.urandom(SIZE)
    (tmp_path / "big").write_bytes(data)
    said = json.loads(run("cp", "--json", "--encrypted", str(tmp_path / "big"), f"{DEBIAN}:/tmp"))
    assert said["over_ssh"] == [f"{DEBIAN}: it was asked for"]
    said = json.loads(run("cp", "--json", f"{DEBIAN}:/tmp/big", str(tmp_path / "back")))
    assert said["over_ssh"] == []
    assert (tmp_path / "back").read_bytes() == data
    in_guest("rm /tmp/big")


def test_copy_whose_connection_is_killed_goes_on(tmp_path: Path) -> None:
    """Its sftp-server dies: one line, nothing under the name, and --resume brings the rest."""
    data = os.urandom(64 << 20)
    (tmp_path / "big").write_bytes(data)
    words = ("cp", str(tmp_path / "big"), f"{DEBIAN}:/tmp/big")
    command = [sys.executable, "-m", "vsock.cli"]
    # It waits before there is anything: a login takes longer than the copy. Until 8 MiB are there.
    size = "stat -c %s /tmp/.big.*.part 2>/dev/null || echo 0"
    kill = (
        f'echo waiting; until [ "$({size})" -gt 8388608 ]; do sleep 0.01; done;'
        " kill $(pidof sftp-server); test -e /tmp/big || echo none"
    )
    with subprocess.Popen(
        [*command, "exec", DEBIAN, "--", "sh", "-c", kill], stdout=subprocess.PIPE, text=True
    ) as killer:
        assert killer.stdout
        assert killer.stdout.readline() == "waiting\n"
        with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True) as copy:
            assert killer.communicate(timeout=SECONDS)[0] == "none\n"
            assert copy.wait(SECONDS) == 1
            assert copy.stderr
            (line,) = copy.stderr.read().splitlines()
            assert "ended during the copy; another one with --resume goes on from there" in line
    run(words[0], "--resume", *words[1:])
    assert in_guest("sha256sum < /tmp/big; ls -A /tmp | grep -c part || true") == (
        f"{hashlib.sha256(data).hexdigest()}  -\n0"
    )
    in_guest("rm /tmp/big")


def test_large_files_pass_as_streams(tmp_path: Path) -> None:
    """By its dd and cksum; names are bytes."""
    data = os.urandom(2 * STREAM_FROM + 5)
    source = tmp_path / "tree"
    source.mkdir()
    odd = Path(os.fsdecode(os.fsencode(source) + b"/-a '\xff$b"))
    odd.write_bytes(data)
    (source / "big").write_bytes(data[1:])
    run("cp", str(source), f"{DEBIAN}:/tmp/there")
    assert in_guest("cd /tmp/there; cat ./-a* | sha256sum") == (
        f"{hashlib.sha256(data).hexdigest()}  -"
    )
    run("cp", f"{DEBIAN}:/tmp/there", str(tmp_path / "back"))
    assert (tmp_path / "back" / odd.name).read_bytes() == data
    assert (tmp_path / "back/big").read_bytes() == data[1:]
    in_guest("rm -r /tmp/there")


def test_streams_and_files_without_a_size() -> None:
    """From standard input to the home of the user, and from /proc to standard output."""
    run("cp", "-", f"{DEBIAN}:from-stdin", given=b"one\0two")
    assert run("cp", f"{DEBIAN}:from-stdin", "-") == b"one\0two"
    in_guest("rm from-stdin")
    assert b"Linux version" in run("cp", f"{DEBIAN}:/proc/version", "-")


@pytest.mark.parametrize("size", [2 << 20, 2 * STREAM_FROM])
def test_full_disk_of_the_guest_is_one_line(tmp_path: Path, size: int) -> None:
    """The guest's name is in it, nothing half-written stays, and the old file is as it was."""
    (tmp_path / "big").write_bytes(os.urandom(size))
    in_guest("mkdir /tmp/full; mount -t tmpfs -o size=1m none /tmp/full; echo old > /tmp/full/big")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "vsock.cli", "cp", str(tmp_path / "big"), f"{DEBIAN}:/tmp/full"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        reason = f"vsock: {DEBIAN}:/tmp/full/big: no space left on the guest's disk\n"
        assert (done.returncode, done.stderr) == (1, reason)
        assert in_guest("ls -A /tmp/full; cat /tmp/full/big") == "big\nold"
    finally:
        in_guest("umount /tmp/full; rmdir /tmp/full")


def test_session_copies_in_and_out(tmp_path: Path) -> None:
    """The same from Python; holes stay holes in the guest."""
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    with vsock.guest_session(DEBIAN) as guest:
        assert guest.copy_in(tmp_path / "sparse", "/tmp").files == 1
        done = guest.run(["stat", "-c", "%s %b", "/tmp/sparse"], check=True)
        size, blocks = map(int, str(done.stdout).split())
        assert size == (64 << 20) + 3
        assert blocks * 512 < 1 << 20
        guest.run(["rm", "/tmp/sparse"], check=True)
        guest.copy_out("/etc/os-release", tmp_path)
    # A link in Debian, and so one here.
    assert (tmp_path / "os-release").readlink() == Path("../usr/lib/os-release")

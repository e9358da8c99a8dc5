"""`vsock mount` with the real sshfs: files through it, lost connections, wrong calls, and guests that are hostile.

The guest is a process of this machine; its files are those of `there`.
"""

import errno
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from tests.ssh.server import SshServer, serving
from tests.ssh.sftp_program import install
from tests.waiting import until

from vsock.cli import sshfs
from vsock.cli.main import main
from vsock.guest import Guest
from vsock.ssh.mounts import Mount, mount_at, mounts

pytestmark = pytest.mark.programs("sshfs", "fusermount3", "perl")

DEADLINE = 40
GONE = "not connected|connection abort|Input/output error"
"""What a program reads from a file system that was killed."""


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder of the guest."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount at; nothing is mounted there afterwards, and no process of its mounts is left."""
    path = tmp_path / "a folder"
    path.mkdir()
    yield path
    for _ in range(4):
        if not mount_at(str(path)):
            break
        subprocess.run(["fusermount3", "-uz", str(path)], check=True, timeout=DEADLINE)
    assert mount_at(str(path)) is None
    until(lambda: not helpers() and not file_systems(path))


def file_systems(folder: Path) -> list[int]:
    """The sshfs of a folder."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if words[0] == b"sshfs" and words[-1] == os.fsencode(folder):
                found.append(int(process.name))
    return found


def helpers() -> list[int]:
    """The processes that this test's sshfs have started."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes()
            state = os.environ["XDG_STATE_HOME"].encode()
            if b"vsock.cli.sftp_pipe" in words and state in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


@pytest.fixture
def sshd(guest: Guest, tmp_path: Path) -> Iterator[SshServer]:
    """The same; the guest opens plain connections for data."""
    with serving(guest, programs=install(tmp_path / "programs")) as running:
        yield running


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that fails with 1, and returns its one line."""

    def run(*words: object) -> str:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert (code, out, err.count("\n")) == (1, "", 1), (code, out, err)
        return err.removeprefix("vsock: ").rstrip("\n")

    return run


def mounted(folder: Path) -> Mount:
    """The line of the listing; other tests may have mounts too."""
    (mount,) = [one for one in mounts() if one.folder == str(folder)]
    return mount


def does(*words: object) -> None:
    """Run a command that succeeds."""
    assert main([str(word) for word in words]) == 0


@pytest.mark.usefixtures("sshd")
@pytest.mark.parametrize("encrypted", [False, True])
def test_files_arrive_whole_in_both_directions(
    there: Path, folder: Path, encrypted: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Over both carriers: contents, names that are no text, modes, renames, holes at the end."""
    data = os.urandom(8 << 20)
    (there / "old").write_bytes(data)
    does("mount", *(["--encrypted"] if encrypted else []), f"alpha:{there}", folder)
    assert capfd.readouterr() == ("", "")
    assert hashlib.sha256((folder / "old").read_bytes()).digest() == hashlib.sha256(data).digest()
    with (folder / "new").open("wb") as file:
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
        os.fsync(file.fileno())
    assert (there / "new").read_bytes() == data
    (folder / "new").chmod(0o600)
    (folder / "new").rename(folder / "old")
    assert (there / "old").stat().st_mode & 0o777 == 0o600
    odd = os.fsdecode(b"\xff\xfe, a\\b\n c")
    (folder / odd).mkdir()
    (folder / odd / "inner").write_text("text")
    assert (there / odd / "inner").read_text() == "text"
    assert sorted(os.listdir(folder)) == sorted(["old", odd])  # noqa: PTH208 - names
    os.truncate(folder / "old", 5)
    assert (there / "old").read_bytes() == data[:5]
    (folder / odd / "inner").unlink()
    (folder / odd).rmdir()
    assert [one.name for one in there.iterdir()] == ["old"]
    does("umount", folder)
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("sshd")
def test_data_does_not_pass_over_ssh(
    there: Path, folder: Path, sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest without SFTP over ssh is enough."""
    monkeypatch.setattr(asyncssh.SFTPServer, "__init__", None)
    (there / "file").write_text("content")
    does("mount", f"alpha:{there}", folder)
    assert (folder / "file").read_text() == "content"
    assert len(sshd.connections) == 1


@pytest.mark.usefixtures("sshd")
def test_name_with_a_carriage_return_is_one_line_of_the_table(
    there: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel's table has it as it is; any user may mount at such a name."""
    odd = folder / "a\rb"
    odd.mkdir()
    does("mount", f"alpha:{there}", odd)
    try:
        assert mounted(odd).guest == "alpha"
        capfd.readouterr()
        does("mount")
        assert f"{folder}/a?b" in capfd.readouterr().out
    finally:
        does("umount", odd)


@pytest.mark.usefixtures("sshd")
def test_listing_shows_what_the_kernel_knows(
    there: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Source, folder, mode and process; findmnt shows the same source; options are safe; then it is gone."""
    odd = there / os.fsdecode(b"a, b\\c\xff")
    odd.mkdir()
    (there / "odd").symlink_to(odd.name)
    does("mount", "--read-only", f"alpha:{odd}", folder)
    mount = mounted(folder)
    assert (mount.guest, mount.path, mount.folder) == ("alpha", str(odd), str(folder))
    with pytest.raises(OSError, match="Read-only file system") as caught:
        (folder / "new").touch()
    assert caught.value.errno == errno.EROFS
    assert list(odd.iterdir()) == []
    capfd.readouterr()
    does("mount", "--json")
    every = json.loads(capfd.readouterr().out)
    (said,) = [one for one in every if one["folder"] == str(folder)]
    pid = said.pop("pid")
    assert said.pop("device") == os.minor(folder.stat().st_dev)
    assert said == {
        "uid": os.getuid(),
        "guest": "alpha",
        "path": str(odd),
        "folder": str(folder),
        "read_only": True,
        "type": "fuse.vsock",
    }
    assert Path(f"/proc/{pid}/comm").read_text() == "sshfs\n"
    does("mount")
    (line,) = [one for one in capfd.readouterr().out.splitlines() if str(folder) in one]
    assert line.split()[-2:] == ["ro", str(pid)]
    said_by_kernel = Path("/proc/mounts").read_bytes().split(b"\n")
    path = os.fsencode(folder).replace(b" ", b"\\040")
    (options,) = [one.split()[3] for one in said_by_kernel if path in one]
    assert {b"nosuid", b"nodev", b"ro"} <= set(options.split(b","))
    assert b"allow_other" not in options
    does("umount", folder)
    does("mount")
    assert str(folder) not in capfd.readouterr().out


@pytest.mark.usefixtures("sshd")
def test_place_of_the_switch_and_of_python_may_be_anywhere(
    there: Path,
    folder: Path,
    tmp_path: Path,
    runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sshfs runs in another directory, and takes no command with blanks."""
    python = tmp_path / "my programs"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.delenv("VSOCK_RUNTIME_DIR")
    monkeypatch.chdir(runtime_dir.parent)
    (there / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    does("mount", "--runtime-dir", runtime_dir.name, f"alpha:{there}", tmp_path / "link")
    assert [one.name for one in folder.iterdir()] == ["file"]
    does("umount", tmp_path / "link")
    assert mount_at(str(folder)) is None


@pytest.mark.usefixtures("sshd")
def test_mount_whose_sshfs_was_killed_can_be_taken_away(there: Path, folder: Path) -> None:
    """The folder is dead, and listed without a process."""
    does("mount", f"alpha:{there}", folder)
    mount = mounted(folder)
    pid = mount.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: error_of(folder / "file") == errno.ENOTCONN)
    until(lambda: mount.pid() is None)
    assert mounted(folder) == mount
    does("umount", folder)
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("sshd")
def test_relative_path_begins_at_home(
    folder: Path, tmp_path: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with scp: the directory in which the guest's server starts."""
    (tmp_path / "home/inner").mkdir(parents=True)
    (tmp_path / "home/inner/file").touch()
    monkeypatch.chdir(tmp_path / "home")
    for path, names in (("inner", ["file"]), ("", ["inner"]), (".", ["inner"])):
        does("mount", f"alpha:{path}", folder)
        assert [one.name for one in folder.iterdir()] == names
        assert mounted(folder).path == path
        does("umount", folder)


def test_each_failure_is_a_line_with_the_side_at_fault(
    guest: Guest,
    there: Path,
    folder: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the host, of the switch, of the guest's sshd, of its files; and nothing is mounted."""
    assert "nobody listens on port 22 of alpha" in fails("mount", f"alpha:{there}", folder)
    assert "no such guest" in fails("mount", f"nobody:{there}", folder)
    with SshServer(
        guest, asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    ):
        assert "does not take the key" in fails("mount", f"alpha:{there}", folder)
    (there / "file").touch()
    does("guest", "host-key", "alpha", "--forget")
    with serving(guest):
        line = fails("mount", f"alpha:{there}/no", folder)
        assert line == f"alpha:{there}/no: no such file or directory"
        line = fails("mount", f"alpha:{there}/file", folder)
        assert line == f"alpha:{there}/file: not a directory"
        (folder / "file").touch()
        assert "not empty" in fails("mount", f"alpha:{there}", folder)
        assert "Not a directory" in fails("mount", f"alpha:{there}", folder / "file")
        assert "No such file" in fails("mount", f"alpha:{there}", folder / "no")
        (folder / "file").unlink()
        monkeypatch.setenv("PATH", "/nonexistent")
        line = fails("mount", f"alpha:{there}", folder)
        assert line == "sshfs is not installed: install the package sshfs (fuse-sshfs on Fedora)"
    assert mount_at(str(folder)) is None


@pytest.mark.usefixtures("sshd")
def test_folder_that_is_mounted_already_or_is_none_of_ours(
    there: Path, folder: Path, fails: Callable[..., str]
) -> None:
    """The second mount and the second umount fail, and so does umount of what others have mounted."""
    does("mount", f"alpha:{there}", folder)
    line = fails("mount", f"alpha:{there}", folder)
    assert line == f"{folder}: alpha:{there} is mounted there already"
    does("umount", folder)
    assert "nothing is mounted there" in fails("umount", folder)
    assert "no folder of a guest is mounted there" in fails("umount", "/proc")
    assert "a file system (proc) is mounted there already" in fails("mount", "alpha:", "/proc")


@pytest.mark.usefixtures("sshd")
def test_folder_in_use_names_who_uses_it(
    there: Path, folder: Path, fails: Callable[..., str]
) -> None:
    """It stays; with --lazy the program goes on, and with --force it gets an error."""
    (there / "file").write_text("content")
    does("mount", f"alpha:{there}", folder)
    with (folder / "file").open() as file:
        line = fails("umount", folder)
        name = Path("/proc/self/comm").read_text().strip()
        assert line.startswith(f"{folder}: in use by {os.getpid()}/{name}; end that, or")
        assert mount_at(str(folder))
        does("umount", "--lazy", folder)
        assert mount_at(str(folder)) is None
        assert file.read() == "content"
    does("mount", f"alpha:{there}", folder)
    again = os.open(folder / "file", os.O_RDONLY)
    does("umount", "--force", folder)
    assert mount_at(str(folder)) is None
    with pytest.raises(OSError, match=GONE):
        os.read(again, 1)
    with suppress(OSError):
        os.close(again)


def test_lost_guest_is_an_error_and_the_folder_stays_mounted(
    guest: Guest, there: Path, folder: Path, tmp_path: Path
) -> None:
    """Nothing can be written into the host's folder by mistake, also when the guest is back; umount cleans up."""
    programs = install(tmp_path / "programs")
    (there / "file").write_text("content")
    with serving(guest, programs=programs) as server:
        does("mount", f"alpha:{there}", folder)
        assert (folder / "file").read_text() == "content"
    until(lambda: error_of(folder / "file") == errno.EIO)
    with serving(guest, programs=programs, key=server.key):
        assert error_of(folder / "file") == errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            (folder / "new").touch()
        does("umount", folder)
        assert list(folder.iterdir()) == []
        assert [one.name for one in there.iterdir()] == ["file"]


@pytest.mark.parametrize("encrypted", [False, True])
def test_mount_comes_back_with_the_guest(
    guest: Guest, there: Path, folder: Path, tmp_path: Path, encrypted: bool
) -> None:
    """With --reconnect: errors while it is away, and then the files."""
    programs = install(tmp_path / "programs")
    (there / "file").write_text("content")
    options = ["--reconnect", *(["--encrypted"] if encrypted else [])]
    with serving(guest, programs=programs) as server:
        does("mount", *options, f"alpha:{there}", folder)
        assert (folder / "file").read_text() == "content"
    until(lambda: error_of(folder / "file") == errno.EIO)
    with serving(guest, programs=programs, key=server.key):
        until(lambda: error_of(folder / "file") == 0)
        assert (folder / "file").read_text() == "content"
        does("umount", folder)


def error_of(path: Path) -> int:
    """What reading a file gives."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno or -1
    return 0


def test_server_that_dies_during_a_write_is_an_error(
    guest: Guest, there: Path, folder: Path, tmp_path: Path
) -> None:
    """Not a file that looks whole to who wrote it."""
    with serving(guest, programs=install(tmp_path / "programs", breaks_after=1 << 20)):
        does("mount", f"alpha:{there}", folder)
        with pytest.raises(OSError, match="Input/output error|not connected"):
            write_whole(folder / "file", bytes(4 << 20))
        does("umount", folder)
    assert (there / "file").stat().st_size < 4 << 20


def write_whole(path: Path, data: bytes) -> None:
    """Write and close, as careful programs do."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


# -- hostile guests ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sshd")
def test_links_of_the_guest_lead_nowhere_on_the_host(
    there: Path, folder: Path, tmp_path: Path
) -> None:
    """Absolute ones and those with `..` are refused; one inside of the folder is followed."""
    (tmp_path / "secret").write_text("of the host")
    (there / "file").write_text("content")
    (there / "inner").mkdir()
    (there / "inside").symlink_to("file")
    outside = {"absolute": "/etc/passwd", "up": "../secret", "deep": "inner/../../secret"}
    for name, target in outside.items():
        (there / name).symlink_to(target)
    does("mount", f"alpha:{there}", folder)
    assert (folder / "inside").read_text() == "content"
    for name in outside:
        for attempt in (Path.read_text, Path.readlink, Path.touch):
            with pytest.raises(PermissionError):
                attempt(folder / name)
    assert (tmp_path / "secret").read_text() == "of the host"


def test_sshfs_that_cannot_contain_links_needs_an_option(
    guest: Guest,
    there: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    """An older one is used for guests that the user trusts."""
    real = subprocess.run(["which", "sshfs"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "bin").mkdir()
    older = tmp_path / "bin/sshfs"
    older.write_text(f'#!/bin/sh\n[ "$1" = --help ] && exit 1\nexec {real.strip()} "$@"\n')
    older.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with serving(guest):
        assert "--follow-links" in fails("mount", f"alpha:{there}", folder)
        assert mount_at(str(folder)) is None
        does("mount", "--follow-links", f"alpha:{there}", folder)


@pytest.mark.usefixtures("sshd")
def test_links_of_a_guest_that_is_trusted_lead_to_files_of_this_host(
    there: Path, folder: Path, tmp_path: Path
) -> None:
    """With --follow-links."""
    (tmp_path / "outside").write_text("of the host")
    (there / "out").symlink_to(tmp_path / "outside")
    does("mount", "--follow-links", f"alpha:{there}", folder)
    assert (folder / "out").read_text() == "of the host"


class Named(asyncssh.SFTPServer):
    """Lists names that no file can have."""

    async def scandir(self, path: bytes) -> Any:
        """All of a folder."""
        for name in (b"..", b".", b"../secret", b"/etc/passwd", b"a/b", b"", b"fine"):
            yield asyncssh.SFTPName(name, attrs=asyncssh.SFTPAttrs(permissions=0o100644, size=1))


def test_names_that_are_paths_lead_nowhere(guest: Guest, there: Path, folder: Path) -> None:
    """The kernel refuses the listing, or the name is not in it."""
    with serving(guest, sftp=Named):
        does("mount", f"alpha:{there}", folder)
        try:
            names = set(os.listdir(folder))  # noqa: PTH208 - names
        except OSError:
            names = set()
        assert names <= {"fine"}
        does("umount", folder)


def test_guest_that_does_not_answer_is_given_up(
    guest: Guest,
    there: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    """An sftp-server that connects, and reads for ever: `mount` has a deadline, and leaves no process."""
    programs = install(tmp_path / "programs")
    (programs / "sftp-server").write_text(
        f"#!{sys.executable}\nimport os\nwhile os.read(0, 4096): pass"
    )
    monkeypatch.setattr(sshfs, "_REST_SECONDS", 0.0)
    with serving(guest, programs=programs):
        line = fails("mount", "--login-timeout", "5", f"alpha:{there}", folder)
        # On a busy machine it may be sshd that is too slow.
        assert re.search(r"alpha did not (answer|let us in) within 5 s", line)
        until(lambda: not helpers())
    assert mount_at(str(folder)) is None


def test_program_that_waits_for_a_silent_guest_is_freed(
    guest: Guest, there: Path, folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    """Its call cannot be interrupted, but umount --force ends it with an error, also by a link to the folder."""
    (there / "file").write_text("content")
    (tmp_path / "link").symlink_to(folder)
    ends: list[str] = []

    def read(file: int) -> None:
        try:
            ends.append(f"{os.read(file, 1)!r}")
        except OSError as error:
            ends.append(str(error))

    with serving(guest) as server:
        does("mount", f"alpha:{there}", folder)
        file = os.open(folder / "file", os.O_RDONLY)
        with server.silent():
            thread = threading.Thread(target=read, args=[file])
            thread.start()
            call = Path(f"/proc/self/task/{thread.native_id}/syscall")
            until(lambda: call.read_text().split()[1:2] == [f"{file:#x}"])  # in read(2)
            assert "in use by" in fails("umount", folder)
            does("umount", "--force", tmp_path / "link")
            thread.join(DEADLINE)
            (end,) = ends
        assert re.search(GONE, end)
        with suppress(OSError):
            os.close(file)


ENDLESS = """
import os, struct, sys
def read(count):
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            sys.exit()
        data += piece
    return data
def text(data):
    return struct.pack(">I", len(data)) + data
def answer(kind, body):
    packet = struct.pack(">IB", len(body) + 1, kind) + body
    while packet:
        packet = packet[os.write(1, packet):]
FOLDER = struct.pack(">II", 4, 0o40755)
counter = 0
while True:
    length, kind = struct.unpack(">IB", read(5))
    body = read(length - 1)
    number = body[:4]
    if kind == 1:
        answer(2, struct.pack(">I", 3))
    elif kind in (7, 8, 17):
        answer(105, number + FOLDER)
    elif kind == 11:
        answer(102, number + text(b"handle"))
    elif kind == 16:
        answer(104, number + struct.pack(">I", 1) + text(b"/") + text(b"/") + FOLDER)
    elif kind == 12:
        names = [text(b"%0200d" % (counter + it)) + text(b"") + FOLDER for it in range(500)]
        counter += 500
        answer(104, number + struct.pack(">I", 500) + b"".join(names))
    else:
        answer(101, number + struct.pack(">I", 0) + text(b"") + text(b""))
"""
"""An sftp-server whose folders have no last name (draft-ietf-secsh-filexfer-02)."""


def test_listing_without_an_end_has_bounded_memory_and_can_be_ended(
    guest: Guest, there: Path, folder: Path, tmp_path: Path
) -> None:
    """sshfs keeps all names until the last one has come; it may take so much memory, and not all of this machine."""
    programs = install(tmp_path / "programs")
    (programs / "sftp-server").write_text(f"#!{sys.executable}\n{ENDLESS}")
    with serving(guest, programs=programs):
        does("mount", f"alpha:{there}", folder)
        pid = mounted(folder).pid()
        assert pid
        most = sshfs._MOST_MEMORY
        assert resource.prlimit(pid, resource.RLIMIT_DATA) == (most, most)
        with subprocess.Popen(["ls", folder], stderr=subprocess.PIPE, text=True) as listing:
            until(lambda: memory(pid) > 64 << 20)
            does("umount", "--force", folder)
            _, said = listing.communicate(timeout=DEADLINE)
        assert re.search(GONE, said)


def memory(pid: int) -> int:
    """Bytes of a process that are resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_guest_that_stops_is_an_error_and_not_a_wait(
    guest: Guest, there: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a paused VM does: its sshd is asked every few seconds whether it answers."""
    monkeypatch.setattr(sshfs, "_KEEPALIVE_SECONDS", 3.0)
    (there / "file").write_text("content")
    with serving(guest) as server:
        does("mount", f"alpha:{there}", folder)
        assert (folder / "file").read_text() == "content"
        with server.silent():
            assert error_of(folder / "file") == errno.EIO
            does("umount", folder)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit(1)", "the guest's SFTP server failed: "),
        ("import os; os.write(1, os.urandom(1 << 20))", "the guest's SFTP server failed: "),
        ("import os; os.write(1, bytes([255] * 9) * 99)", "the guest's SFTP server failed: "),
    ],
)
def test_server_that_speaks_no_sftp_is_the_guests_fault(
    guest: Guest,
    there: Path,
    folder: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    source: str,
    reason: str,
) -> None:
    """One line, and nothing is mounted."""
    programs = install(tmp_path / "programs")
    (programs / "sftp-server").write_text(f"#!{sys.executable}\n{source}")
    with serving(guest, programs=programs):
        assert fails("mount", f"alpha:{there}", folder).startswith(f"alpha:{there}: {reason}")
    assert mount_at(str(folder)) is None


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_interrupt_leaves_nothing_mounted(
    guest: Guest, there: Path, folder: Path, tmp_path: Path, number: int, code: int
) -> None:
    """Ctrl-C while the guest does not answer: no process; and so by timeout(1)."""
    programs = install(tmp_path / "programs")
    (programs / "sftp-server").write_text(
        f"#!{sys.executable}\nimport os\nwhile os.read(0, 4096): open({str(tmp_path / 'asked')!r}, 'w')"
    )
    words = [sys.executable, "-m", "vsock.cli", "mount", f"alpha:{there}", str(folder)]
    with serving(guest, programs=programs):
        with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
            until((tmp_path / "asked").exists)
            process.send_signal(number)
            assert process.wait(DEADLINE) == code
            assert process.stderr
            assert process.stderr.read().count(b"\n") == 1
        until(lambda: not helpers())
    assert mount_at(str(folder)) is None

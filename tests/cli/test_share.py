"""`vsock share` with the real sshfs and server: files through it, its end, wrong calls, and guests that are hostile.

The guest is a process of this machine, and so is its sshfs; `there` is a folder of it.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.ssh.server import SshServer, serving
from tests.waiting import until

from vsock.cli.main import main
from vsock.guest import Guest
from vsock.ssh import sharing as sharing_module
from vsock.ssh.identity import state_dir
from vsock.ssh.mounts import mount_at

pytestmark = pytest.mark.programs("sshfs", "fusermount3", "perl")

DEADLINE = 40
AGAIN = "again"
"""Another folder of the guest, beside `there`."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of the host."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    """A folder of the guest, which is not there yet; nothing is mounted there afterwards."""
    path = tmp_path / "guest's/a folder, \\ 'there'"
    yield path
    for folder in [path, path.with_name(AGAIN)]:
        for _ in range(4):
            if not mount_at(str(folder)):
                break
            subprocess.run(["fusermount3", "-uz", str(folder)], check=True, timeout=DEADLINE)
        assert mount_at(str(folder)) is None
    until(lambda: not servers())


def servers() -> list[int]:
    """The SFTP servers that are children of this test's commands, or of nobody."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if (
                words[1:3] == [b"--sftp", b"--folder"]
                and os.environ["XDG_STATE_HOME"].encode().rpartition(b"/")[0] in words[3] + b"/"
            ):
                found.append(int(process.name))
    return found


@pytest.fixture
def sshd(guest: Guest, tmp_path: Path) -> Iterator[SshServer]:
    """The same; the guest opens plain connections for data."""
    (tmp_path / "programs").mkdir()
    with serving(guest, programs=tmp_path / "programs") as running:
        yield running


@contextmanager
def sharing(*words: object, ends: bool = True) -> Iterator[tuple[Any, str]]:
    """`vsock share` until the end of the block: the process, when the folder is there, and what it has said.

    With `ends` Ctrl-C ends it, and it says no more.
    """
    order = [sys.executable, "-m", "vsock.cli", "share", *map(str, words)]
    with subprocess.Popen(order, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            said = ""
            while not said.endswith((" (read-only)\n", " (writable)\n")):
                line = process.stderr.readline()
                said += line
                assert line, said
            yield process, said
            if ends:
                process.send_signal(signal.SIGINT)
                assert (process.stderr.read(), process.wait(DEADLINE)) == ("", 0)
        finally:
            process.kill()


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


def run(*words: object) -> str:
    """The output of a command that succeeds and has nothing to complain about."""
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def shared() -> list[dict[str, Any]]:
    """The listing."""
    found: list[dict[str, Any]] = json.loads(run("share", "--json"))
    return found


@pytest.mark.usefixtures("sshd")
@pytest.mark.parametrize("encrypted", [False, True])
def test_files_are_in_the_guest_and_cannot_be_changed(
    here: Path, there: Path, encrypted: bool
) -> None:
    """Over both carriers: contents, names that are no text, links; changes of the host are seen; Ctrl-C ends it."""
    data = os.urandom(8 << 20)
    (here / "file").write_bytes(data)
    odd = os.fsdecode(b"\xff\xfe, a\\b\n c")
    (here / odd).mkdir()
    (here / odd / "inner").write_text("text")
    (here / odd / "link").symlink_to("../file")
    with sharing(*(["--encrypted"] if encrypted else []), here, f"alpha:{there}") as (_, said):
        assert said == f"vsock: {here} is at alpha:{there} (read-only)\n"
        assert (there / "file").read_bytes() == data
        assert (there / odd / "inner").read_text() == "text"
        assert (there / odd / "link").read_bytes() == data
        for attempt in (Path.touch, Path.mkdir):
            with pytest.raises(OSError, match="Read-only file system"):
                attempt(there / "new")
        (here / "file").write_text("changed")
        until(lambda: (there / "file").read_text() == "changed")
        assert there.stat().st_uid == here.stat().st_uid
    assert mount_at(str(there)) is None
    assert list(there.iterdir()) == []


@pytest.mark.usefixtures("sshd")
def test_guest_may_write_if_that_is_wanted(here: Path, there: Path) -> None:
    """What it makes, changes, moves and removes; no rights of an owner come with it."""
    data = os.urandom(4 << 20)
    (here / "old").write_text("old")
    with sharing("--writable", here, f"alpha:{there}") as (_, said):
        assert said == f"vsock: {here} is at alpha:{there} (writable)\n"
        (there / "new").write_bytes(data)
        assert (here / "new").read_bytes() == data
        (there / "new").chmod(0o4711)
        assert (here / "new").stat().st_mode & 0o7777 == 0o711
        os.truncate(there / "new", 5)
        (there / "folder").mkdir()
        (there / "new").rename(there / "folder/new")
        (there / "folder/new").replace(there / "old")
        assert (here / "old").read_bytes() == data[:5]
        (there / "folder/link").symlink_to("inner")
        with pytest.raises(PermissionError):
            (there / "folder/out").symlink_to("../../secret")
        (there / "folder/link").unlink()
        (there / "folder").rmdir()
        assert [one.name for one in here.iterdir()] == ["old"]


@pytest.mark.usefixtures("sshd")
def test_share_in_the_background_is_listed_and_taken_away(
    here: Path, there: Path, fails: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The listing has it with its process, which is gone when `unshare` has returned."""
    (here / "file").write_text("content")
    assert run("share", "--background", here, f"alpha:{there}") == ""
    assert (there / "file").read_text() == "content"
    (record,) = shared()
    pid = record.pop("pid")
    assert record == {
        "guest": "alpha",
        "path": str(there),
        "asked": str(there),
        "folder": str(here),
        "read_only": True,
        "user": "root",
    }
    assert main(["share"]) == 0
    (line,) = [one for one in capfd.readouterr().out.splitlines() if str(here) in one]
    assert f"alpha:{there}" in line
    assert line.split()[-3:] == ["ro", "root", str(pid)]
    line = fails("share", here, f"alpha:{there}")
    assert line == f"alpha:{there}: something is mounted there already"
    assert "nothing is shared there" in fails("unshare", f"beta:{there}")
    process = os.pidfd_open(pid)
    run("unshare", f"alpha:{there}/")
    assert select.select([process], [], [], 0)[0]
    os.close(process)
    assert mount_at(str(there)) is None
    assert shared() == []
    assert "nothing is shared there" in fails("unshare", f"alpha:{there}")


@pytest.mark.usefixtures("sshd")
def test_share_that_was_killed_leaves_nothing(here: Path, there: Path) -> None:
    """No server, no mount, and no line of the listing."""
    run("share", "--background", here, f"alpha:{there}")
    (record,) = shared()
    os.kill(record["pid"], signal.SIGKILL)
    until(lambda: mount_at(str(there)) is None)
    until(lambda: not servers())
    assert shared() == []


def test_ssh_carries_the_data_of_a_guest_that_opens_no_connection(
    guest: Guest, here: Path, there: Path
) -> None:
    """A line says so."""
    (here / "file").write_bytes(bytes(3 << 20))
    with serving(guest), sharing(here, f"alpha:{there}") as (_, said):
        first, _ = said.splitlines()
        assert first.startswith("vsock: ssh carries the data of alpha: it has no perl, python3")
        assert (there / "file").read_bytes() == bytes(3 << 20)


def test_relative_path_begins_at_home(
    guest: Guest, here: Path, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with scp: the directory in which the guest's server starts commands."""
    there.mkdir(parents=True)
    monkeypatch.chdir(there.parent)
    (tmp_path / "link").symlink_to(here)
    (here / "file").touch()
    with serving(guest), sharing(tmp_path / "link", f"alpha:{there.name}") as (_, said):
        assert said.endswith(f"vsock: {here} is at alpha:{there} (read-only)\n")
        assert (there / "file").exists()


def test_each_failure_is_a_line_with_the_side_at_fault(
    guest: Guest,
    here: Path,
    there: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the host, of the switch, of the guest's sshd, of its programs and files; and nothing is mounted."""
    assert "nobody listens on port 22 of alpha" in fails("share", here, f"alpha:{there}")
    assert "no such guest" in fails("share", here, f"nobody:{there}")
    words = [sys.executable, "-m", "vsock.cli", "share", "--background"]
    words += [str(here), f"nobody:{there}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    with serving(guest):
        (tmp_path / "file").touch()
        line = fails("share", here, f"alpha:{tmp_path}/file")
        assert line.startswith(f"alpha:{tmp_path}/file: mkdir: ")
        line = fails("share", here, f"alpha:{tmp_path}")
        assert line.startswith(f"alpha:{tmp_path}: not empty")
        assert "something is mounted there already" in fails("share", here, "alpha:/proc")
        (here / "sh").symlink_to("/bin/sh")
        monkeypatch.setenv("PATH", str(here))
        line = fails("share", here, f"alpha:{there}")
        assert line == "alpha: it has no sshfs: install its package sshfs (fuse-sshfs on Fedora)"
    assert mount_at(str(there)) is None


@pytest.mark.usefixtures("sshd")
def test_folder_that_the_guest_unmounts_is_shared_no_more(here: Path, there: Path) -> None:
    """The command fails with a line; the next share at the same place works."""
    with sharing(here, f"alpha:{there}", ends=False) as (process, _):
        subprocess.run(["fusermount3", "-u", there], check=True, timeout=DEADLINE)
        reason = "not shared any more: it was unmounted in the guest"
        assert process.stderr.read() == f"vsock: alpha:{there}: {reason}\n"
        assert process.wait(DEADLINE) == 1
    with sharing(here, f"alpha:{there}"):
        pass


def test_share_ends_with_the_guest_or_comes_back_with_it(
    guest: Guest, here: Path, there: Path, tmp_path: Path
) -> None:
    """Two commands, of which one has --reconnect; the guest's sshfs is killed, and leaves a dead mount."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (here / "file").touch()
    again = there.with_name(AGAIN)
    place = f"alpha:{again}"
    with ExitStack() as stack:
        with serving(guest, programs=programs) as server:
            lost, _ = stack.enter_context(sharing(here, f"alpha:{there}", ends=False))
            kept, _ = stack.enter_context(
                sharing("--reconnect", here, f"alpha:{again}", ends=False)
            )
        line = f"vsock: alpha:{there}: not shared any more: the session with it ended\n"
        assert (lost.stderr.read(), lost.wait(DEADLINE)) == (line, 1)
        line = (
            "vsock: alpha: the session with it ended; it is shared again when the guest is back\n"
        )
        assert kept.stderr.readline() == line
        with serving(guest, programs=programs, key=server.key):
            # Attempts that fail are lines, too.
            until(lambda: kept.stderr.readline() == f"vsock: {here} is at {place} (read-only)\n")
            assert (again / "file").exists()
            (record,) = shared()
            assert (record["path"], record["pid"]) == (str(again), kept.pid)
            kept.send_signal(signal.SIGTERM)
            assert (kept.stderr.read(), kept.wait(DEADLINE)) == ("", 0)
            assert mount_at(str(again)) is None
            # The first one was taken away by nobody, and is dead.
            with sharing(here, f"alpha:{there}"):
                assert (there / "file").exists()


# -- hostile guests ------------------------------------------------------------------------------------

ATTACK = """
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
def ask(kind, body):
    packet = struct.pack(">BI", kind, 7) + body
    os.write(1, struct.pack(">I", len(packet)) + packet)
    return read(struct.unpack(">I", read(4))[0])[5:]
os.write(1, struct.pack(">IBI", 5, 1, 3))
read(struct.unpack(">I", read(4))[0])
for path, flags in ((b"../secret", 1), (b"/../secret", 1), (b"out", 1), (b"file", 2), (b"new", 10)):
    code = struct.unpack_from(">I", ask(3, text(path) + struct.pack(">II", flags, 0)))[0]
    print(path, code, file=answers)
print("vsock: mounted", file=sys.stderr)
sys.stdin.read()
"""
"""A sshfs that asks for what is not its own, and says how that went (draft-ietf-secsh-filexfer-02)."""


def test_guest_that_asks_for_other_files_gets_none(
    guest: Guest, here: Path, there: Path, tmp_path: Path
) -> None:
    """The server is confined and read-only; tests/ssh/test_folder_server.py has the attacks."""
    (tmp_path / "secret").write_text("of the host")
    (here / "out").symlink_to("../secret")
    (here / "file").write_text("content")
    programs = tmp_path / "programs"
    answers = tmp_path / "answers"
    hostile(programs, f"answers = open({str(answers)!r}, 'w', 1)\n{ATTACK}")
    with serving(guest, programs=programs), sharing(here, f"alpha:{there}"):
        codes = [line.split()[-1] for line in answers.read_text().splitlines()]
    assert codes == ["3"] * 5
    assert sorted(one.name for one in here.iterdir()) == ["file", "out"]


def hostile(programs: Path, source: str, *, name: str = "sshfs") -> None:
    """Give the guest another sshfs to mount with, or another program that it is asked to run."""
    programs.mkdir(exist_ok=True)
    (programs / name).write_text(f"#!{sys.executable}\n{source}")
    (programs / name).chmod(0o755)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit('no such luck')", "no such luck"),
        ("raise SystemExit(1)", "sshfs ended"),
        ("import os; os.write(1, bytes([255] * 9)); os.read(0, 1)", "the client sends a packet of"),
        ("import os; os.write(2, bytes([27]) * 9**6); raise SystemExit(1)", "?" * 200),
    ],
)
def test_sshfs_that_mounts_nothing_is_a_line(
    guest: Guest,
    here: Path,
    there: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    source: str,
    reason: str,
) -> None:
    """With its own reason, or the server's."""
    hostile(tmp_path / "programs", source)
    with serving(guest, programs=tmp_path / "programs"):
        line = fails("share", here, f"alpha:{there}")
    assert line.startswith(f"alpha:{there}: ")
    assert reason in line


def test_sshfs_that_does_nothing_is_given_up(
    guest: Guest,
    here: Path,
    there: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`share` has a deadline, and leaves no process."""
    hostile(tmp_path / "programs", "import os\nwhile os.read(0, 4096): pass")
    monkeypatch.setattr(sharing_module, "_MOUNT_SECONDS", 1.0)
    with serving(guest, programs=tmp_path / "programs"):
        line = fails("share", here, f"alpha:{there}")
    assert line == f"alpha:{there}: sshfs did not mount it within 1 s"


def test_guest_that_answers_without_an_end_is_given_up(
    guest: Guest,
    here: Path,
    there: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answer needs no memory."""
    monkeypatch.setattr(sharing_module, "_PREPARE_SECONDS", 1.0)
    with serving(guest, instead="exec yes"):
        assert fails("share", here, f"alpha:{there}") == "alpha did not answer within 1 s"


@pytest.mark.parametrize("sessions", [0, 1])
def test_guest_whose_sshd_starts_nothing_is_given_up(
    guest: Guest,
    here: Path,
    there: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    sessions: int,
) -> None:
    """It answers all else: when the folder is looked at, and when sshfs is to be started."""
    monkeypatch.setattr(sharing_module, "_PREPARE_SECONDS", 2.0)
    with serving(guest, sessions=sessions, is_mute=True) as server:
        line = fails("share", "--encrypted", here, f"alpha:{there}")
        assert server.asked_too_much.is_set()
    assert line == "sshd of alpha started no command within 2 s"


MOUNTS_NOTHING = "import sys; print('vsock: mounted', file=sys.stderr, flush=True); "
"""The begin of a sshfs that lies."""


def test_end_of_a_share_does_not_wait_for_a_sshd_that_starts_nothing(
    guest: Guest,
    here: Path,
    there: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command that unmounts is never started."""
    hostile(tmp_path / "programs", f"{MOUNTS_NOTHING}raise SystemExit(3)")
    monkeypatch.setattr(sharing_module, "_END_SECONDS", 2.0)
    options = {"sessions": 2, "is_mute": True, "programs": tmp_path / "programs"}
    with serving(guest, **options) as server:
        assert main(["share", str(here), f"alpha:{there}"]) == 1
        assert server.asked_too_much.is_set()
    reason = "not shared any more: sshfs of the guest ended: 3"
    assert capfd.readouterr().err.endswith(f"(read-only)\nvsock: alpha:{there}: {reason}\n")


def test_second_interrupt_ends_a_share_whose_guest_does_not_unmount(
    guest: Guest, here: Path, there: Path, tmp_path: Path
) -> None:
    """With a line: the guest may have it mounted for ever."""
    hostile(tmp_path / "programs", f"{MOUNTS_NOTHING}import time; time.sleep(1000)")
    with (
        serving(guest, programs=tmp_path / "programs"),
        sharing(here, f"alpha:{there}", ends=False) as (process, _),
    ):
        process.send_signal(signal.SIGINT)
        until(lambda: not servers())
        process.send_signal(signal.SIGINT)
        line = f"vsock: alpha:{there}: interrupted again; it may still be mounted in the guest\n"
        assert (process.stderr.read(), process.wait(DEADLINE)) == (line, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)])
def test_interrupt_while_the_guest_does_nothing_leaves_nothing(
    guest: Guest, here: Path, there: Path, tmp_path: Path, number: int, code: int
) -> None:
    """One line, and no server."""
    asked = tmp_path / "asked"
    hostile(
        tmp_path / "programs",
        f"import os\nopen({str(asked)!r}, 'w')\nwhile os.read(0, 4096): pass",
    )
    words = [sys.executable, "-m", "vsock.cli", "share", str(here), f"alpha:{there}"]
    with (
        serving(guest, programs=tmp_path / "programs"),
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process,
    ):
        until(asked.exists)
        process.send_signal(number)
        assert process.wait(DEADLINE) == code
        assert process.stderr
        assert process.stderr.read().count("\n") == 1


@pytest.mark.parametrize("answer", ["srv", "/srv/../etc", "//srv", "/srv/", "", "/srv\\nmore/.."])
def test_guest_that_answers_with_no_path_is_refused(
    guest: Guest, here: Path, fails: Callable[..., str], answer: str
) -> None:
    """What it calls the folder is listed, and goes into commands."""
    with serving(guest, instead=f"printf 'passive\\n{answer}\\n'"):
        line = fails("share", here, "alpha:/srv")
    assert line.startswith("alpha says that the folder is '")
    assert line.endswith("which is no absolute path")


HANGS_UP = """
import os, sys, time, _socket
open("{place}/asked", "w")
while not os.path.exists("{place}/go"):
    time.sleep(0.02)
connection = _socket.socket(40, 1)
connection.connect((int(sys.argv[3]), int(sys.argv[4])))
connection.send(os.environ["VSOCK_TOKEN"].encode())
connection.close()
open("{place}/done", "w")
time.sleep(1000)
"""
"""A perl that opens a connection for data, and closes it behind the token."""


def test_guest_that_hangs_up_behind_its_token_is_a_line(
    guest: Guest, here: Path, there: Path, tmp_path: Path
) -> None:
    """It has gone before it can be told anything."""
    hostile(tmp_path / "programs", HANGS_UP.format(place=tmp_path), name="perl")
    words = [sys.executable, "-m", "vsock.cli", "share", str(here), f"alpha:{there}"]
    with (
        serving(guest, programs=tmp_path / "programs"),
        subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            until((tmp_path / "asked").exists)
            process.send_signal(signal.SIGSTOP)
            (tmp_path / "go").touch()
            until((tmp_path / "done").exists)
            process.send_signal(signal.SIGCONT)
            assert process.stderr
            assert process.stderr.read() == "vsock: the session with alpha ended\n"
            assert process.wait(DEADLINE) == 1
        finally:
            process.kill()


@pytest.mark.usefixtures("sshd")
def test_path_as_it_was_given_ends_a_share(here: Path, there: Path, tmp_path: Path) -> None:
    """The guest says where its links lead, and the listing has both."""
    there.parent.mkdir()
    (tmp_path / "link").symlink_to(there.parent)
    asked = f"{tmp_path}/link/{there.name}"
    run("share", "--background", here, f"alpha:{asked}")
    (record,) = shared()
    assert (record["path"], record["asked"]) == (str(there), asked)
    run("unshare", f"alpha:{asked}/")
    assert mount_at(str(there)) is None
    assert shared() == []


def test_folder_with_the_keys_of_all_guests_is_not_shared(
    here: Path, there: Path, fails: Callable[..., str]
) -> None:
    """Nor one around it, or in it, whatever its name."""
    keys = state_dir()
    keys.mkdir(parents=True, exist_ok=True)
    (keys / "inner").mkdir()
    (here / "link").symlink_to(keys)
    for folder in (keys, keys.parent, keys / "inner", here / "link", "/"):
        line = fails("share", folder, f"alpha:{there}")
        assert line.startswith(f"{folder}: no guest may see {keys}, ")


@pytest.mark.usefixtures("sshd")
def test_sshfs_that_is_killed_leaves_no_dead_folder(here: Path, there: Path) -> None:
    """The command takes it away, and fails."""
    with sharing(here, f"alpha:{there}", ends=False) as (process, _):
        (pid,) = file_systems(there)
        os.kill(pid, signal.SIGKILL)
        line = f"vsock: alpha:{there}: not shared any more: sshfs of the guest ended: "
        assert process.stderr.read().startswith(line)
        assert process.wait(DEADLINE) == 1
        assert mount_at(str(there)) is None


def file_systems(folder: Path) -> list[int]:
    """The sshfs of a folder."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if words[0] == b"sshfs" and words[-1] == os.fsencode(folder):
                found.append(int(process.name))
    return found

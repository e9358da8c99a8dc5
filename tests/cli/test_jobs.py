"""`vsock exec --detach` and `vsock jobs`: commands in a guest that go on by themselves, with each shell that guests have."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.ssh.server import SshServer

from vsock.errors import UsageError
from vsock.guest import Guest
from vsock.ssh.identity import Identity
from vsock.ssh.jobs import (
    Followed,
    checked_id,
    code,
    follow,
    follow_on,
    kill,
    listed,
    listing,
    printed_code,
    remove,
    start,
    wait,
)

DEADLINE = 60
BUSYBOX = Path(__file__).parents[2] / "build/guests/unpacked/busybox-static/bin"


@pytest.fixture(autouse=True)
def sshd(guest: Guest) -> Iterator[SshServer]:
    """An SSH server in alpha."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """No test leaves a job that runs: the guest's programs are this machine's."""
    kept = Path(os.environ["XDG_STATE_HOME"]) / "vsock/jobs"
    yield
    for job in kept.iterdir() if kept.exists() else ():
        if not (job / "code").exists():
            with suppress(ProcessLookupError):
                os.killpg(int((job / "pid").read_text()), signal.SIGKILL)


def vsock(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "vsock.cli", *words]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def jobs() -> list[dict[str, object]]:
    """What `vsock jobs` says."""
    done = vsock("jobs", "alpha", "--json")
    assert done.returncode == 0, done.stderr
    listing: list[dict[str, object]] = json.loads(done.stdout)
    return listing


def wait_for(path: Path) -> None:
    """Wait until a job has made a file."""
    deadline = time.monotonic() + DEADLINE
    while not path.exists():
        assert time.monotonic() < deadline


def test_job_goes_on_by_itself_and_its_output_is_kept(tmp_path: Path) -> None:
    """In the directory and environment that it was given; the exit code is its own."""
    script = (
        f'echo "$A" "$1"; pwd; echo e >&2; until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 7'
    )
    # The variable XDG_STATE_HOME is the job's: it does not say where jobs are kept.
    variables = ("-e", "A=b  'c'", "-e", "XDG_STATE_HOME=/nonexistent", "-e", "PATH=/usr/bin:/bin")
    words = ("-w", "/usr", *variables, "--", "sh", "-c", script, "sh", "d  e")
    done = vsock("exec", "alpha", "--detach", "--name", "one", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n", "")
    (job,) = jobs()
    assert (job["id"], job["state"], job["exit_code"]) == ("one", "running", None)
    assert str(job["command"]).startswith("sh -c ")
    done = vsock("wait-job", "alpha", "one", "--timeout", "0.5")
    assert (done.returncode, done.stderr) == (124, "vsock: alpha: job one still runs\n")
    (tmp_path / "go").touch()
    done = vsock("wait-job", "alpha", "one")
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    for _ in range(2):
        done = vsock("attach", "alpha", "one")
        assert (done.returncode, done.stdout) == (7, "b  'c' d  e\n/usr\n")
        assert done.stderr == "e\n"
    assert [(one["state"], one["exit_code"]) for one in jobs()] == [("ended", 7)]
    assert vsock("jobs", "alpha", "--remove", "one").returncode == 0
    assert jobs() == []


def test_output_is_shown_while_the_job_writes(tmp_path: Path) -> None:
    """Each byte once, also what it writes while one is attached; the end is not missed."""
    script = f"head -c 300000 /dev/zero; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo end"
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "sh", "-c", script).stdout
    command = [sys.executable, "-m", "vsock.cli", "attach", "alpha", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(300_000) == bytes(300_000)
        (tmp_path / "go").touch()
        assert process.stdout.read() == b"end\n"
        assert process.wait(DEADLINE) == 0


def test_job_is_ended_with_its_children(tmp_path: Path) -> None:
    """One that runs is not removed; one that has ended is not ended again."""
    script = f"(until [ -e {tmp_path}/never ]; do sleep 0.1; done) & touch {tmp_path}/begun; wait"
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "sh", "-c", script).stdout
    wait_for(tmp_path / "begun")
    done = vsock("jobs", "alpha", "--remove", "x")
    assert (done.returncode, done.stderr) == (
        1,
        "vsock: alpha: job x still runs: end it with --kill\n",
    )
    assert vsock("jobs", "alpha", "--kill", "x").returncode == 0
    assert [(one["state"], one["exit_code"]) for one in jobs()] == [("ended", 143)]
    done = vsock("jobs", "alpha", "--kill", "x")
    assert (done.returncode, done.stderr) == (1, "vsock: alpha: job x does not run\n")


def test_job_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """After five seconds; the code is that of the signal."""
    script = (
        f"trap '' TERM; touch {tmp_path}/begun; until [ -e {tmp_path}/never ]; do sleep 0.1; done"
    )
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "sh", "-c", script).stdout
    wait_for(tmp_path / "begun")
    assert vsock("jobs", "alpha", "--kill", "x").returncode == 0
    assert [(one["state"], one["exit_code"]) for one in jobs()] == [("ended", 137)]


def test_job_whose_shell_was_killed_is_lost() -> None:
    """As all are after the guest was restarted."""
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "sleep", "600").stdout
    (directory,) = (Path(os.environ["XDG_STATE_HOME"]) / "vsock/jobs").iterdir()
    os.killpg(int((directory / "pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE
    while jobs()[0]["state"] != "lost":
        assert time.monotonic() < deadline
    done = vsock("attach", "alpha", "x")
    assert done.returncode == 1
    assert done.stderr.startswith("job x is lost")
    (directory / "boot").write_text("another boot\n")
    assert vsock("wait-job", "alpha", "x").stderr.startswith("vsock: alpha: job x is lost")


def test_job_has_the_mask_of_its_user_and_a_directory_may_be_a_link(tmp_path: Path) -> None:
    """As /root is one in some systems; only what is kept of a job is for its user alone."""
    state = Path(os.environ["XDG_STATE_HOME"])
    state.mkdir(exist_ok=True)
    (state / "elsewhere").mkdir()
    (state / "vsock").mkdir(exist_ok=True)
    (state / "vsock/jobs").symlink_to(state / "elsewhere")
    script = f"umask > {tmp_path}/mask; until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "sh", "-c", script).stdout
    assert [one["state"] for one in jobs()] == ["running"]
    (tmp_path / "go").touch()
    assert vsock("wait-job", "alpha", "x").returncode == 0
    mask = os.umask(0)
    os.umask(mask)
    assert int((tmp_path / "mask").read_text(), 8) == mask


def test_commands_with_odd_characters_are_listed_each(tmp_path: Path) -> None:
    """What echo would take for an escape, and lines."""
    for number, text in enumerate(("a\\c", "b\nc", "d\u2028job x ended 1 2 3")):
        name = f"job{number}"
        assert vsock("exec", "alpha", "--detach", "--name", name, "--", "true", text).stdout
        assert vsock("wait-job", "alpha", name).returncode == 0
    assert [one["id"] for one in jobs()] == ["job0", "job1", "job2"]


def test_whoever_follows_a_job_ends_with_the_session(tmp_path: Path) -> None:
    """Nothing is left in the guest that waits for the job."""
    script = f"echo begun; until [ -e {tmp_path}/never ]; do sleep 0.1; done"
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "sh", "-c", script).stdout
    follower = subprocess.Popen(
        ("sh", "-c", '"$@" & echo $!; wait', "sh", *follow("x")), stdout=subprocess.PIPE
    )
    with follower:
        assert follower.stdout
        lines = [follower.stdout.readline(), follower.stdout.readline()]
        lines.remove(b"begun\n")  # it follows, and so knows its parent
        pid = int(lines[0])
        follower.kill()
    deadline = time.monotonic() + DEADLINE
    while Path(f"/proc/{pid}/cwd").exists():
        assert time.monotonic() < deadline


def test_names_are_unique_and_those_that_are_missing_are_named() -> None:
    """Also a name that the guest cannot keep."""
    assert vsock("exec", "alpha", "--detach", "--name", "x", "--", "true").stdout == "x\n"
    done = vsock("exec", "alpha", "--detach", "--name", "x", "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (255, 1)
    assert done.stderr.startswith("vsock: alpha: there is a job x already")
    for words in (("attach",), ("wait-job",), ("jobs", "--kill"), ("jobs", "--remove")):
        done = vsock(words[0], "alpha", *words[1:], "y")
        assert done.returncode == 1
        assert "there is no job y: see `vsock jobs`" in done.stderr
    assert vsock("jobs", "alpha", "--kill", "../x").returncode == 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "a b", "x" * 65, "a\nb", "é"])
def test_name_that_is_none_is_refused(name: str) -> None:
    """It would be another file, or an option."""
    with pytest.raises(UsageError):
        checked_id(name)


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_scripts_are_for_any_shell(shell: str, tmp_path: Path) -> None:
    """Those of Debian, Fedora and Alpine; with busybox all other programs are its own too."""
    found = shutil.which(shell, path=f"{os.environ['PATH']}:{BUSYBOX}")
    if not found:
        pytest.skip(f"this machine has no {shell}; `make guests` unpacks busybox")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sh").symlink_to(found)
    path = f"{programs}:{os.environ['PATH']}"
    if shell == "busybox":
        (programs / "sh").unlink()
        subprocess.run([found, "--install", "-s", programs], check=True, timeout=DEADLINE)
        path = str(programs)
    variables = {**os.environ, "PATH": path, "A": "b\n'c'"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=tmp_path,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    done = run(*start("x", ["sh", "-c", 'echo "$A"; pwd; echo e >&2; kill -KILL $$']))
    assert (done.returncode, done.stderr) == (0, "")
    done = run(*follow("x"))
    assert (done.returncode, done.stdout) == (137, f"b\n'c'\n{tmp_path}\n")
    assert "e" in done.stderr.splitlines()
    assert run(*wait("x")).returncode == 137
    assert printed_code(run(*code("x")).stdout) == 137
    assert printed_code(run(*code("z")).stdout) is None
    shown, told = len(done.stdout), len(done.stderr)
    for first, second in ((0, 0), (3, 1), (shown, told)):
        rest = run(*follow_on("x", first, second, "mark"))
        assert rest.stdout == "mark\n" + done.stdout[first:]
        assert (rest.returncode, rest.stderr) == (0, "mark\n" + done.stderr[second:])
    for first, second in ((shown + 1, told), (0, told + 1), (1 << 40, 0)):
        rest = run(*follow_on("x", first, second, "mark"))
        assert rest.returncode == Followed.SHORTER
        assert (rest.stdout, rest.stderr) == ("mark\n", "mark\n")
    rest = run(*follow_on("z", 0, 0, "mark"))
    assert (rest.returncode, rest.stdout, rest.stderr) == (Followed.GONE, "", "")
    assert run(*start("y", ["sleep", "600"])).returncode == 0
    done = run(*kill("y"))
    assert (done.returncode, done.stderr) == (0, "")
    assert {one.id: one.exit_code for one in listed(run(*listing()).stdout)} == {"x": 137, "y": 143}
    assert run(*remove("x")).returncode == 0
    assert [one.id for one in listed(run(*listing()).stdout)] == ["y"]


def test_listing_of_a_guest_that_lies_is_harmless() -> None:
    """Lines that are none are left out; nothing moves the cursor."""
    said = (
        "job a running - 5 -\n exec \x1b[2J true\njob b ended 300000 4 5\nx\njob ../c ended 1 4 5\n"
    )
    assert [(one.id, one.command) for one in listed(said + "\0\njob")] == [
        ("?", "?"),
        ("a", "?[2J true"),
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("007\n", 7),
        ("255", 255),
        ("256\n", None),
        ("\n", None),
        ("-1\n", None),
        ("hello\n2\n", 2),
        ("2\nhello\n", None),
    ],
)
def test_exit_code_of_a_guest_that_lies_is_none(said: str, expected: int | None) -> None:
    """It is 0 to 255."""
    assert printed_code(said) == expected

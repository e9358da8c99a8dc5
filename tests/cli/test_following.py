"""`vsock exec --reconnect` and `vsock attach --reconnect`: a command that outlives the sessions in which it is followed."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from asyncssh import generate_private_key
from tests.ssh.server import SshServer, serving
from tests.started import Start, started
from tests.unread import is_half_full
from tests.waiting import until

from vsock.guest import Guest

if TYPE_CHECKING:
    import subprocess

SECONDS = 60


@pytest.fixture
def server(guest: Guest) -> Callable[..., SshServer]:
    """Makes an SSH server in alpha, to be started; each has the same host key."""
    key = generate_private_key("ssh-ed25519")
    return lambda **options: serving(guest, key=key, **options)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command; ends it with the test, and with it the jobs: the guest's programs are this machine's."""
    with started() as begin:
        yield begin
    for job in kept():
        if not (job / "code").exists():
            with suppress(ProcessLookupError, FileNotFoundError):
                os.killpg(pid_of(job), signal.SIGKILL)


def kept() -> list[Path]:
    """The directories of the jobs."""
    folder = Path(os.environ["XDG_STATE_HOME"]) / "vsock/jobs"
    return list(folder.iterdir()) if folder.exists() else []


def pid_of(job: Path) -> int:
    """The process of a job, which leads its group."""
    return int((job / "pid").read_text())


def has_ended(group: int) -> bool:
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def execute(start: Start, script: str, *words: str) -> "subprocess.Popen[bytes]":
    """Run a script in alpha as a job that is followed."""
    return start("exec", "alpha", "--reconnect", "--name", "x", *words, "--", "sh", "-c", script)


def said(process: "subprocess.Popen[bytes]") -> str:
    """The next line of its standard error."""
    assert process.stderr
    return process.stderr.readline().decode()


def wrote(process: "subprocess.Popen[bytes]") -> str:
    """The next line of its standard output."""
    assert process.stdout
    return process.stdout.readline().decode()


LOST = "; job x is shown again when the guest is back\n"
GONE = "there is no job x any more: it was removed, or the guest was restarted or restored"


def test_command_runs_once_while_sessions_come_and_go(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """Each byte of both streams is shown once, also what was written meanwhile; the exit code is the command's."""
    script = (
        "echo $$ $A; pwd; seq 1 20000; echo before >&2;"
        f" until [ -e {tmp_path}/go ]; do sleep 0.1; done;"
        " seq 20001 40000; echo meanwhile >&2; touch written;"
        f" until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo after >&2; exit 7"
    )
    with server():
        process = execute(start, script, "-w", str(tmp_path), "-e", "A=b  c")
        assert process.stdout
        begun = wrote(process)
        assert begun.endswith(" b c\n")
        assert wrote(process) == f"{tmp_path}\n"
        assert [wrote(process) for _ in range(20_000)] == [f"{n}\n" for n in range(1, 20_001)]
        assert said(process) == "before\n"
    assert said(process).endswith(LOST)
    assert "nobody listens on port 22" in said(process)
    (tmp_path / "go").touch()
    until((tmp_path / "written").exists)
    with server():
        assert [wrote(process) for _ in range(20_000)] == [f"{n}\n" for n in range(20_001, 40_001)]
        assert said(process) == "meanwhile\n"
    assert said(process).endswith(LOST)
    (tmp_path / "end").touch()
    with server():
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (7, b"")
    *failing, last = err.decode().splitlines()
    assert last == "after"
    assert all("nobody listens" in line for line in failing)
    assert kept() == []


def test_what_the_shell_of_the_user_says_is_none_of_the_output(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """It says so in each session, and bytes of the job that are as many are shown all the same."""
    hello = "echo hello; echo hello >&2"
    script = (
        f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.1; done;"
        " echo meanwhile; echo meanwhile >&2; touch written;"
        f" until [ -e {tmp_path}/end ]; do sleep 0.1; done; exit 1"
    )
    with server(before=hello):
        process = execute(start, script, "-w", str(tmp_path))
        assert wrote(process) == "begun\n"
    assert said(process).endswith(LOST)
    (tmp_path / "go").touch()
    until((tmp_path / "written").exists)
    with server(before=hello):
        assert wrote(process) == "meanwhile\n"
        (tmp_path / "end").touch()
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if b"nobody listens" not in line] == [b"meanwhile"]


def test_output_that_waits_for_a_slow_reader_is_written_once(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """The session ends while this process's output is not read."""
    (tmp_path / "data").write_bytes(os.urandom(3 << 20))
    with server():
        process = execute(start, f"cat {tmp_path}/data")
        assert process.stdout
        pipe = process.stdout
        until(lambda: is_half_full(pipe))
    with server():
        assert process.stdout.read() == (tmp_path / "data").read_bytes()
        assert process.wait(SECONDS) == 0
    assert said(process).endswith(LOST)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_job_with_its_children(
    server: Callable[..., SshServer], start: Start, number: signal.Signals
) -> None:
    """Also those that ignore SIGTERM; nothing is kept. The exit code is that of a command that SIGTERM ended."""
    child = "(trap '' TERM; sleep 1000)" if number == signal.SIGINT else "sleep 1000"
    with server():
        process = execute(start, f"{child} & echo begun; wait")
        assert wrote(process) == "begun\n"
        (job,) = kept()
        group = pid_of(job)
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out) == (143, b""), err
        assert has_ended(group)
        assert kept() == []


def test_signal_while_the_guest_is_away_says_that_the_job_may_go_on(
    server: Callable[..., SshServer], start: Start
) -> None:
    """It cannot be ended then."""
    with server():
        process = execute(start, "echo begun; sleep 1000")
        assert wrote(process) == "begun\n"
    assert said(process).endswith(LOST)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 255
    assert err.decode().splitlines()[-1] == (
        "vsock: interrupted; job x may go on in alpha: `vsock jobs alpha` shows it"
    )


def test_signal_before_the_command_was_started_says_so(guest: Guest, start: Start) -> None:
    """The guest's SSH server does not answer yet."""
    with guest.create_server(22) as mute:
        mute.settimeout(SECONDS)
        process = execute(start, "true")
        with mute.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (255, b"vsock: interrupted; COMMAND was not started\n")


def test_second_signal_does_not_wait_for_a_guest_that_says_nothing(
    server: Callable[..., SshServer], start: Start
) -> None:
    """As one that is paused."""
    with server() as running:
        process = execute(start, "echo begun; sleep 1000")
        assert wrote(process) == "begun\n"
        with running.silent():
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 255
    assert said(process).startswith("vsock: interrupted; job x may go on in alpha")


def test_job_is_ended_when_nobody_reads_its_output(
    server: Callable[..., SshServer], start: Start
) -> None:
    """As a command of `vsock exec` is; nothing is kept of it."""
    with server():
        process = execute(start, "echo begun; while :; do echo more; sleep 0.1; done")
        assert wrote(process) == "begun\n"
        (job,) = kept()
        group = pid_of(job)
        assert process.stdout
        process.stdout.close()
        process.wait(SECONDS)
        assert has_ended(group)
        assert kept() == []


def restarted(job: Path) -> None:
    """As if the guest had been restarted: the job's shell is gone, and the boot is another one."""
    os.killpg(pid_of(job), signal.SIGKILL)
    (job / "boot").write_text("another\n")


def killed(job: Path) -> None:
    """Its shell is gone."""
    os.killpg(pid_of(job), signal.SIGKILL)


def removed(job: Path) -> None:
    """As in a guest whose files are gone with a restart."""
    os.killpg(pid_of(job), signal.SIGKILL)
    job.rename(job.parent.parent / "elsewhere")


def restored(job: Path) -> None:
    """As at an earlier time."""
    os.truncate(job / "stdout", 3)


def restarted_and_cut(job: Path) -> None:
    """What was not on the disk yet is gone."""
    restarted(job)
    restored(job)


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (restarted, "job x is lost: the guest was restarted before COMMAND ended"),
        (restarted_and_cut, "job x is lost: the guest was restarted before COMMAND ended"),
        (killed, "job x is lost: it was ended before it could say how"),
        (removed, GONE),
        (
            restored,
            (
                "job x has written less than was shown: the guest was restored to an earlier time;"
                " `vsock attach alpha x` shows all of it"
            ),
        ),
    ],
)
def test_job_that_did_not_outlive_its_guest_is_an_error(
    server: Callable[..., SshServer], start: Start, happens: Callable[[Path], None], reason: str
) -> None:
    """One line that says so, with the exit code of `vsock exec` when a session has ended; 1 of `vsock attach`."""
    with server():
        process = execute(start, "echo begun; sleep 1000")
        assert wrote(process) == "begun\n"
        other = start("attach", "alpha", "x", "--reconnect")
        assert wrote(other) == "begun\n"
    for one in (process, other):
        assert said(one).endswith(LOST)
    (job,) = kept()
    happens(job)
    with server():
        for one, code in ((process, 255), (other, 1)):
            out, err = one.communicate(timeout=SECONDS)
            assert (one.returncode, out) == (code, b"")
            it = "COMMAND" if code == 255 else "it"
            assert err.decode().splitlines()[-1] == f"vsock: alpha: {reason}".replace("COMMAND", it)


def test_job_that_the_guest_ended_when_it_shut_down_has_its_exit_code(
    server: Callable[..., SshServer], start: Start
) -> None:
    """Its files say so after the restart."""
    with server():
        process = execute(start, "echo begun; sleep 1000")
        assert wrote(process) == "begun\n"
    (job,) = kept()
    os.killpg(pid_of(job), signal.SIGTERM)
    until((job / "code").exists)
    (job / "boot").write_text("another\n")
    with server():
        assert process.wait(SECONDS) == 143


def test_attach_goes_on_in_the_next_session_and_leaves_the_job(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """Ctrl-C ends this command alone; a name that no job has is an error at once."""
    wait = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    with server():
        script = f"echo begun; {wait}; echo end; exit 3"
        done = start("exec", "alpha", "--detach", "--name", "x", "--", "sh", "-c", script)
        assert done.wait(SECONDS) == 0
        process = start("attach", "alpha", "x", "--reconnect")
        interrupted = start("attach", "alpha", "x", "--reconnect")
        for one in (process, interrupted):
            assert wrote(one) == "begun\n"
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait(SECONDS) == 130
        wrong = start("attach", "alpha", "y", "--reconnect")
        _, err = wrong.communicate(timeout=SECONDS)
        assert (wrong.returncode, err) == (
            1,
            b"vsock: alpha: there is no job y: see `vsock jobs`\n",
        )
    assert said(process).endswith(LOST)
    (tmp_path / "go").touch()
    with server():
        out, _ = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (3, b"end\n")
    assert [job.name for job in kept()] == ["x"]


def test_command_that_cannot_be_started_is_an_error(
    server: Callable[..., SshServer], start: Start
) -> None:
    """No session to begin with, and a name that is taken: nothing is waited for."""
    process = execute(start, "true")
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err.count(b"\n")) == (255, 1)
    with server():
        assert start("exec", "alpha", "--detach", "--name", "x", "--", "true").wait(SECONDS) == 0
        process = execute(start, "true")
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 255
    assert err.startswith(b"vsock: alpha: there is a job x already")


def test_start_that_the_guest_did_not_confirm_is_an_error(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """A job of that name may be another one: it is neither shown nor removed."""
    with server():
        words = ("--detach", "--name", "x", "--", "echo", "other")
        assert start("exec", "alpha", *words).wait(SECONDS) == 0
    with server(instead=f"touch {tmp_path}/asked; exec sleep 1000"):
        process = execute(start, "true")
        until((tmp_path / "asked").exists)
    with server():
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (255, b"")
    assert b"; whether job x was started is not known: `vsock jobs alpha` shows it" in err
    assert [job.name for job in kept()] == ["x"]


def test_guest_that_takes_no_command_is_an_error_of_the_first_session_alone(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """A later one is as a guest that is not back yet: one line for all attempts."""
    with server(sessions=0):
        for process in (execute(start, "true"), start("attach", "alpha", "x", "--reconnect")):
            _, err = process.communicate(timeout=SECONDS)
            assert (process.returncode, err.count(b"\n")) == (255, 1)
            assert b"alpha starts no command: Session refused" in err
    with server():
        process = execute(
            start, f"echo begun; until [ -e {tmp_path}/end ]; do sleep 0.1; done; exit 3"
        )
        assert wrote(process) == "begun\n"
    assert said(process).endswith(LOST)
    with server(sessions=0) as refusing:
        until(lambda: len(refusing.connections) > 2)
    (tmp_path / "end").touch()
    with server():
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err.count(b"Session refused")) == (3, 1)


def test_guest_that_ends_the_follower_has_lost_the_session(
    server: Callable[..., SshServer], start: Start, tmp_path: Path
) -> None:
    """As one that shuts down: its programs get SIGTERM before its sshd does."""
    with server():
        process = execute(
            start, f"echo begun; until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo end; exit 3"
        )
        assert wrote(process) == "begun\n"
        (job,) = kept()
        os.kill(follower_of(job), signal.SIGTERM)
        assert said(process).endswith(LOST)
        (tmp_path / "end").touch()
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (3, b"end\n", b"")


def follower_of(job: Path) -> int:
    """The shell that shows what the job writes: it has its output open, as the job itself has its pid there."""
    for one in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (one / "fd/3").readlink() == job / "stdout" and (one / "comm").read_text() == "sh\n":
                return int(one.name)
    raise AssertionError("nobody follows the job")


def test_job_that_is_removed_while_it_is_followed_is_gone(
    server: Callable[..., SshServer], start: Start
) -> None:
    """As by the `vsock exec --reconnect` that has begun it: the guest was not restarted for that."""
    with server():
        process = execute(start, "echo begun; sleep 1000")
        assert wrote(process) == "begun\n"
        (job,) = kept()
        group, follower = pid_of(job), follower_of(job)
        os.kill(follower, signal.SIGSTOP)
        shutil.rmtree(job)
        os.killpg(group, signal.SIGKILL)
        os.kill(follower, signal.SIGCONT)
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err.decode()) == (255, f"vsock: alpha: {GONE}\n")


def test_exit_code_that_cannot_be_read_is_not_another_one(
    server: Callable[..., SshServer],
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job is removed when its end was seen: the exit code of the script that reads its own is not the job's."""
    with server():
        words = ("--detach", "--name", "x", "--", "echo", "begun")
        assert start("exec", "alpha", *words).wait(SECONDS) == 0
        (job,) = kept()
        until((job / "code").exists)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sh").write_text(
        "#!/bin/sh\n"
        f"echo >> {tmp_path}/calls\n"
        f"[ $(wc -l < {tmp_path}/calls) -ne 2 ] || rm -r {job}\n"
        'exec /bin/sh "$@"\n'
    )
    (programs / "sh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with server():
        process = start("attach", "alpha", "x", "--reconnect")
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (1, b"begun\n")
    assert err.decode() == f"vsock: alpha: {GONE}\n"

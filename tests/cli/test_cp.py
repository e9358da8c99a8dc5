"""`vsock cp`: files and streams by the command line; errors are one line and 1, and the others go on."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ssh.server import SshServer
from tests.waiting import until

from vsock.guest import Guest
from vsock.ssh.identity import Identity
from vsock.switch import Switch

DEADLINE = 40


@pytest.fixture(autouse=True)
def sshd(guest: Guest) -> Iterator[SshServer]:
    """An SSH server in alpha."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running


def vsock(*words: str, given: bytes = b"", **options: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command."""
    command = [sys.executable, "-m", "vsock.cli", *words]
    return subprocess.run(
        command,
        input=given,
        capture_output=True,
        timeout=DEADLINE,
        check=False,
        cwd=options.get("cwd"),
    )


def test_files_go_to_a_guest_and_back(tmp_path: Path) -> None:
    """Local paths are relative, or have a colon after a slash; the result is JSON where it is asked for."""
    (tmp_path / "a:b").write_text("content")
    (tmp_path / "there").mkdir()
    done = vsock("cp", "./a:b", f"alpha:{tmp_path}/there", cwd=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = vsock("cp", "--json", f"alpha:{tmp_path}/there/.", "back", cwd=str(tmp_path))
    result = json.loads(done.stdout)
    assert result.pop("seconds") >= 0
    assert result == {
        "files": 1,
        "folders": 1,
        "links": 0,
        "bytes": 7,
        "failed": 0,
        "failures": [],
        "notes": [],
        "over_ssh": ["alpha: it has no perl, python3, socat or ncat that knows vsock"],
    }
    assert (tmp_path / "back/a:b").read_text() == "content"


def test_standard_streams(tmp_path: Path) -> None:
    """As bytes; the file keeps the mode that it has."""
    data = os.urandom(1 << 20)
    (tmp_path / "file").touch(0o640)
    done = vsock("cp", "-", f"alpha:{tmp_path}/file", given=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "file").read_bytes() == data
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert vsock("cp", f"alpha:{tmp_path}/file", "-").stdout == data
    done = vsock("cp", "-", f"alpha:{tmp_path}", given=data)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"is a folder: name the file" in done.stderr


def test_from_guest_to_guest(switch: Switch, tmp_path: Path) -> None:
    """The data goes through the host."""
    (tmp_path / "one").write_text("content")
    with Guest(switch.socket_path("beta")) as beta:
        with SshServer(beta, Identity.of_user().public_key()):
            done = vsock("cp", f"alpha:{tmp_path}/one", f"beta:{tmp_path}/two")
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "two").read_text() == "content"


def test_failures_are_lines_and_the_others_are_copied(tmp_path: Path) -> None:
    """A line says which side it is; JSON has it too."""
    (tmp_path / "fine").write_text("fine")
    (tmp_path / "there").mkdir()
    words = [str(tmp_path / "nothing"), str(tmp_path / "fine"), f"alpha:{tmp_path}/there"]
    done = vsock("cp", "--json", *words)
    line = f"{tmp_path}/nothing: no such file or folder"
    assert (done.returncode, done.stderr.decode()) == (1, f"vsock: {line}\n")
    assert json.loads(done.stdout)["failures"] == [line]
    assert (tmp_path / "there/fine").read_text() == "fine"
    done = vsock("cp", str(tmp_path / "fine"), "nobody:/tmp")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"'nobody': no such guest" in done.stderr
    done = vsock("cp", str(tmp_path / "fine"), str(tmp_path / "fine"), f"alpha:{tmp_path}/no")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_interrupt_leaves_a_part_and_no_file(tmp_path: Path) -> None:
    """Ctrl-C is 130, without a message; what has come is there for --resume."""
    (tmp_path / "target").mkdir()
    with (tmp_path / "large").open("wb") as file:
        file.write(os.urandom(32 << 20))
        file.truncate(1 << 40)
    words = ["cp", f"alpha:{tmp_path}/large", str(tmp_path / "target")]
    command = [sys.executable, "-m", "vsock.cli", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr
        deadline = time.monotonic() + DEADLINE
        while not any(path.stat().st_size > 16 << 20 for path in (tmp_path / "target").iterdir()):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert (process.wait(DEADLINE), process.stderr.read()) == (130, b"\n")
    (part,) = (tmp_path / "target").iterdir()
    assert part.name.startswith(".large.")


def test_interrupt_does_not_wait_for_a_guest_that_is_silent(
    sshd: SshServer, tmp_path: Path
) -> None:
    """Nor for what sshd has not taken yet, when ssh carries the data."""
    (tmp_path / "large").write_bytes(os.urandom(64 << 20))
    (tmp_path / "target").mkdir()
    words = ["cp", str(tmp_path / "large"), f"alpha:{tmp_path}/target"]
    with subprocess.Popen([sys.executable, "-m", "vsock.cli", *words]) as process:
        try:
            until(lambda: any(path.stat().st_size for path in (tmp_path / "target").iterdir()))
            with sshd.silent():
                process.send_signal(signal.SIGINT)
                assert process.wait(20) == 130
        finally:
            process.kill()
    (part,) = (tmp_path / "target").iterdir()
    assert part.name.startswith(".large.")


AT_ONCE = """
import sys
from vsock.cli import copies
from vsock.cli.main import main
copies._SHOWN_AFTER_SECONDS = 0
sys.exit(main(sys.argv[1:]))
"""


def test_long_copy_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    """With the rate and the time that is left; here from its beginning instead of after a second."""
    with (tmp_path / "large").open("wb") as file:
        file.write(os.urandom(64 << 20))
    ours, theirs = pty.openpty()
    command = ["cp", f"alpha:{tmp_path}/large", str(tmp_path / "back")]
    process = subprocess.Popen(
        [sys.executable, "-c", AT_ONCE, *command],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:
        pass  # the terminal of a process that has ended
    finally:
        os.close(ours)
        assert process.wait(DEADLINE) == 0
    assert b"/s" in seen
    assert b"64.0" in seen or b"67.1" in seen

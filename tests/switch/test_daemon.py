"""The daemon as a process: ready, reloaded, stopped, and its errors when it cannot start."""

import os
import queue
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from vsock.control.client import ControlClient
from vsock.control.model import GuestSpec
from vsock.guest import Guest
from vsock.runtime import RuntimeFiles
from vsock.sockets import create_connection
from vsock.transports import SwitchTransport

DEADLINE = 20


class Daemon:
    """A `vsock switch` process whose log can be waited for, run by another program if one is given."""

    def __init__(self, *arguments: str, under: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*under, sys.executable, "-m", "vsock.cli", "switch", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.put(line)
        self.lines.put("")

    def wait_for(self, pattern: str) -> str:
        """The next line that has `pattern` in it."""
        seen = []
        while line := self.lines.get(timeout=DEADLINE):
            seen.append(line)
            if re.search(pattern, line):
                return line
        pytest.fail(f"ended without {pattern!r}: {''.join(seen)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        assert self.process.stderr
        self.process.stderr.close()


@pytest.fixture
def config(runtime_dir: Path) -> Path:
    """A config file with one guest, for the runtime directory of the test."""
    file = runtime_dir / "vsock.toml"
    file.write_text('[[guest]]\nname = "alpha"\ncid = 3\n')
    return file


def guests(runtime_dir: Path) -> dict[str, int]:
    """Names and CIDs of the daemon's guests."""
    return {guest.name: guest.cid for guest in ControlClient(runtime_dir).guests()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_daemon_ends_cleanly_on_a_signal(runtime_dir: Path, number: signal.Signals) -> None:
    """Exit code 0, and no socket is left."""
    with Daemon("--guest", "alpha=3,lab", "--guest", "beta=4,lab") as daemon:
        daemon.wait_for("ready")
        assert guests(runtime_dir) == {"alpha": 3, "beta": 4}
        daemon.process.send_signal(number)
        daemon.wait_for("stopped")
        assert daemon.process.wait(DEADLINE) == 0
    assert [path for path in runtime_dir.rglob("*") if path.is_socket()] == []


def test_killed_daemon_can_be_started_again(runtime_dir: Path) -> None:
    """Socket files of a dead switch are replaced."""
    with Daemon("--guest", "alpha=3") as first:
        first.wait_for("ready")
        first.process.kill()
        first.process.wait(DEADLINE)
    assert (runtime_dir / "control.sock").is_socket()
    with Daemon("--guest", "beta=4") as second:
        second.wait_for("ready")
        assert guests(runtime_dir) == {"beta": 4}


def test_daemon_waits_a_moment_for_one_that_is_ending(runtime_dir: Path) -> None:
    """N29: a second `vsock switch` right after a signal to the first."""
    with Daemon("--guest", "alpha=3") as first:
        first.wait_for("ready")
        with Daemon("--guest", "beta=4") as second:
            second.wait_for(f"waiting, in case it is ending: another .* {first.process.pid} ")
            first.process.terminate()
            second.wait_for("ready")
            assert guests(runtime_dir) == {"beta": 4}
            second.process.terminate()
            assert second.process.wait(DEADLINE) == 0


def test_second_daemon_names_the_first_and_leaves(runtime_dir: Path) -> None:
    """N8: one line with an option of the command line, exit code 1, and the first daemon goes on."""
    with Daemon() as first:
        first.wait_for("ready")
        with Daemon() as second:
            named = f"another switch .* process {first.process.pid} "
            second.wait_for(f"{named}.*choose another directory with --runtime-dir or VSOCK_RUN")
            assert second.process.wait(DEADLINE) == 1
        assert guests(runtime_dir) == {}


@pytest.mark.parametrize("by", ["option", "variable"])
def test_directory_for_everybody_is_refused_and_left_as_it_is(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """N1: `--runtime-dir /tmp` is one line that says what to do, and changes nothing."""
    shared = runtime_dir / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    if by == "variable":
        monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(shared))
    with Daemon(*(["--runtime-dir", str(shared)] if by == "option" else [])) as daemon:
        own = f"choose a directory of its own with --runtime-dir .*, for example {shared}/vsock"
        daemon.wait_for(f"vsock: {shared} is used by other users too; {own}")
        assert daemon.process.wait(DEADLINE) == 1
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert list(shared.iterdir()) == []


def test_reloaded_config_is_taken_in_steps(runtime_dir: Path, config: Path) -> None:
    """N25: guests of the file change, those of the API stay, a file with faults changes nothing, and each step is logged."""
    with Daemon("--config", str(config)) as daemon:
        daemon.wait_for("ready")
        ControlClient(runtime_dir).add_guest(GuestSpec(name="extra", cid=9))
        config.write_text('[[guest]]\nname = "beta"\ncid = 3\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("guest added: guest=beta")
        assert guests(runtime_dir) == {"beta": 3, "extra": 9}
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("config read again: no guest changed")
        config.write_text('[[guest]]\nname = "beta"\ncid = 0\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r"config not taken: .*vsock\.toml:3: ")
        assert guests(runtime_dir) == {"beta": 3, "extra": 9}


def test_reloaded_groups_and_cid_leave_the_attachment_alone(
    runtime_dir: Path, config: Path
) -> None:
    """F3: SIGHUP after a change that needs no new attachment makes none, and ends no connection."""
    with Daemon("--config", str(config)) as daemon:
        daemon.wait_for("ready")
        transport = SwitchTransport(str(runtime_dir))
        with (
            Guest(RuntimeFiles(runtime_dir).guest_socket("alpha")) as guest,
            guest.create_server(5000) as listener,
            create_connection((3, 5000), transport=transport) as ours,
        ):
            theirs, _ = listener.accept()
            config.write_text('[[guest]]\nname = "alpha"\ncid = 3\ngroups = ["lab"]\n')
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("guest changed: guest=alpha cid=3 groups=lab")
            with theirs:
                ours.sendall(b"x")
                assert theirs.recv(1) == b"x"
                config.write_text('[[guest]]\nname = "alpha"\ncid = 4\ngroups = ["lab"]\n')
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for("guest renumbered: guest=alpha cid=4 before=3")
                with pytest.raises(ConnectionResetError):
                    theirs.recv(1)
            record = ControlClient(runtime_dir).guest("alpha")
            assert (record.cid, record.state, record.groups) == (4, "running", ("lab",))
            # Removed by the API, changed in the file: it is added as in the file.
            ControlClient(runtime_dir).remove_guest("alpha")
            config.write_text('[[guest]]\nname = "alpha"\ncid = 4\n')
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("guest added: guest=alpha cid=4")


def test_reloaded_linger_timeout_counts(runtime_dir: Path, config: Path) -> None:
    """F2: that of the file, or of the command line."""
    with Daemon("--config", str(config), "--linger-timeout", "30") as daemon:
        daemon.wait_for("ready")
        config.write_text("[switch]\nlinger_timeout = 0\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for(r"config not taken: .*vsock\.toml:2: linger_timeout must be above 0")


def test_systemd_hears_ready_and_stopping(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY comes when guests can be served, STOPPING before they go, the watchdog in between."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(runtime_dir / "notify"))
        systemd.settimeout(DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(runtime_dir / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        with Daemon() as daemon:
            assert systemd.recv(100).startswith(b"READY=1")
            assert guests(runtime_dir) == {}
            assert systemd.recv(100) == b"WATCHDOG=1"
            daemon.process.terminate()
            assert systemd.recv(100) == b"STOPPING=1"


def test_config_with_faults_lists_them_and_does_not_start(runtime_dir: Path, config: Path) -> None:
    """Every fault is printed, with its line."""
    config.write_text('[[guest]]\nname = "host"\ncid = 0\n')
    with Daemon("--config", str(config)) as daemon:
        daemon.wait_for(r"vsock\.toml:2: ")
        daemon.wait_for(r"vsock\.toml:3: ")
        assert daemon.process.wait(DEADLINE) == 2
    assert [path.name for path in runtime_dir.iterdir()] == ["vsock.toml"]


LOSES_ITS_DATA_PLANE = """
import os, sys, threading
from pathlib import Path
from vsock.cli.main import main

def is_epoll(link):
    return link.is_symlink() and os.readlink(link) == "anon_inode:[eventpoll]"

def lose():
    sys.stdin.readline()
    with os.scandir("/proc/self/fd") as links:
        fds = [int(link.name) for link in links if is_epoll(Path(link.path))]
    # asyncio has made its own before.
    os.dup2(os.open("/dev/null", os.O_RDONLY), max(fds))

threading.Thread(target=lose, daemon=True).start()
sys.exit(main())
"""


def test_daemon_whose_data_plane_has_ended_ends_with_an_error(tmp_path: Path) -> None:
    """S9: nobody is left behind a switch that does nothing any more; a service manager starts another."""
    with subprocess.Popen(
        [sys.executable, "-c", LOSES_ITS_DATA_PLANE, "switch", "--runtime-dir", tmp_path / "run"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"WATCHDOG_USEC": "400000"},
    ) as daemon:
        assert daemon.stderr
        try:
            while "ready" not in (line := daemon.stderr.readline()):
                assert line, "it ended before it was ready"
            log = daemon.communicate("\n", timeout=DEADLINE)[1]
        finally:
            daemon.kill()
    assert daemon.returncode == 1
    assert "CRITICAL vsock.switch: ended" in log
    assert log.splitlines()[-1] == "vsock: the data plane is gone: the node is stopped"

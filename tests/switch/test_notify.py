"""sd_notify: the messages that systemd receives, and none without systemd."""

import os
import socket
from pathlib import Path

import pytest

from vsock.switch.notify import notify, watchdog_interval


@pytest.mark.parametrize("is_abstract", [False, True])
def test_notify_sends_one_datagram(
    is_abstract: bool, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of addresses that systemd passes work."""
    path = str(runtime_dir / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + path if is_abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + path if is_abstract else path)
        assert notify("READY=1", "STATUS=fine")
        assert receiver.recv(100) == b"READY=1\nSTATUS=fine"


def test_notify_without_a_listener_does_nothing() -> None:
    """Outside systemd the daemon runs too."""
    assert not notify("READY=1")


def test_watchdog_beats_twice_as_often_as_systemd_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One late beat must not end the daemon."""
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_interval() == 1.5


@pytest.mark.parametrize(
    ("usec", "pid"),
    [("", ""), ("0", str(os.getpid())), ("3000000", "1")],
    ids=["unset", "no time", "another process"],
)
def test_watchdog_of_nobody_or_another_process_is_none(
    usec: str, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of a watched service is not watched itself."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_interval() is None


def test_notify_of_a_manager_that_is_gone_is_logged_and_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The switch goes on without the service manager's socket."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("STOPPING=1")
    assert "cannot notify" in caplog.text

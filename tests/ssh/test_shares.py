"""The records of shares: which processes share which folders, on which machine."""

import fcntl
import os

import pytest

from vsock.ssh.identity import state_dir
from vsock.ssh.shares import Share, recorded, shares

NODE = os.uname_result(("Linux", "host.example.org", "6", "1", "x86_64"))


def share(pid: int) -> Share:
    """A record of a process."""
    return Share(
        guest="alpha",
        path="/srv/x",
        asked="x",
        folder="/x",
        read_only=True,
        user="root",
        pid=pid,
    )


def test_record_that_is_none_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another version has written, and those of other machines, also with a name that begins alike."""
    monkeypatch.setattr(os, "uname", lambda: NODE)
    folder = state_dir() / "shares"
    with recorded(share(1)), recorded(share(2)):
        others = ["host.example.org-2-77", "host-77", "host.example.org-78"]
        for name in others:
            (folder / name).write_text('{"guest": "alpha"}')
        with (folder / "host.example.org-78").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert shares() == [share(1), share(2)]
            (folder / "host.example.org-78").write_text("{")
            assert shares() == [share(1), share(2)]
        assert shares() == [share(1), share(2)]
        assert sorted(one.name for one in folder.iterdir()) == sorted(
            ["host-77", "host.example.org-1", "host.example.org-2", "host.example.org-2-77"]
        )
    assert shares() == []


def test_host_with_dots_in_its_name_has_a_record_for_each_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both are written at once: what is not complete yet has a name of its own."""
    monkeypatch.setattr(os, "uname", lambda: NODE)
    folder = state_dir() / "shares"
    folder.mkdir(parents=True)
    # What a path of the same name with another suffix would be, held by a process that writes it at the moment.
    (folder / "host.example.new").mkdir()
    with recorded(share(1)):
        assert shares() == [share(1)]

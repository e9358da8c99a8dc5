"""After a close, the same pair of ports can be connected again at once, also with one processor."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bad_input.lab import Lab

import vsock


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A switch that shares one processor with this thread."""
    before = os.sched_getaffinity(0)
    with Lab() as lab:
        monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(lab.directory))
        one = {min(before)}
        for thread in Path(f"/proc/{lab.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), one)
        os.sched_setaffinity(0, one)
        try:
            yield lab
        finally:
            os.sched_setaffinity(0, before)


def test_closed_client_comes_back_from_its_port(lab: Lab) -> None:
    """The switch reads the other end's answer to the close only after the new connect."""
    with vsock.socket() as listener:
        listener.bind((vsock.CID_ANY, vsock.PORT_ANY))
        listener.listen(1)
        there = (vsock.CID_LOCAL, listener.getsockname().port)
        for port in range(20_000, 20_100):
            first = vsock.socket()
            first.bind((vsock.CID_ANY, port))
            first.connect(there)
            old, _ = listener.accept()
            first.close()
            told = select.poll()
            told.register(old, select.POLLRDHUP)
            told.poll()
            with old, vsock.socket() as second:
                second.bind((vsock.CID_ANY, port))
                second.connect(there)
                listener.accept()[0].close()

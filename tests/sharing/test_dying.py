"""A process that ends in the middle of a connect, while another one holds the same socket (A1)."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import vsock
from vsock import CID_LOCAL, _client

PORT = 5000
SENDS = [("call", "send"), ("return", "send")]
"""Before and after the request is sent."""


def dies_at(point: tuple[str, str], call: Callable[[], object]) -> None:
    """Make a call in a child, which SIGKILL ends where it calls a function of `vsock._client` or returns from it."""
    child = os.fork()
    if child == 0:

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            function = frame.f_code.co_name
            if (event, function) == point and frame.f_globals["__name__"] == _client.__name__:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            call()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child has not come to {point}"
    assert os.WTERMSIG(status) == signal.SIGKILL


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Collects the waits of this thread."""
    waits: list[str] = []

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (frame.f_code.co_name, frame.f_globals["__name__"]) == (
            "_wait",
            "vsock._system.waiting",
        ):
            waits.append(str(frame.f_locals["wanted"]))
            assert len(waits) < 100, waits[-3:]

    sys.setprofile(profile)
    try:
        yield waits
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("point", SENDS)
def test_connect_that_another_process_has_not_begun_is_awaited_with_pauses(switch, point):
    """Such a socket is writable, so a wait for that would return at once, again and again."""
    with vsock.create_server(PORT), vsock.socket() as sock:
        dies_at(point, lambda: sock.connect((CID_LOCAL, PORT)))
        sock.settimeout(0.35)
        with counted() as waits, pytest.raises(TimeoutError, match="timed out"):
            sock.connect((CID_LOCAL, PORT))
        assert 1 <= len(waits) <= 4, waits
        sock.setblocking(False)
        with pytest.raises(OSError, match="already in progress"):
            sock.connect((CID_LOCAL, PORT))


@pytest.mark.parametrize("point", SENDS)
def test_connect_that_nobody_has_begun_by_its_deadline_costs_the_socket(switch, point, monkeypatch):
    """Whether the request was sent is not known: an answer may still come, and must not be that to the next connect."""
    monkeypatch.setattr(_client, "ANSWER_TIMEOUT", 0.2)
    with vsock.create_server(PORT), vsock.socket() as sock, sock.dup() as twin:
        sock.connect_timeout = 0.1
        dies_at(point, lambda: sock.connect((CID_LOCAL, PORT)))
        with counted() as waits, pytest.raises(vsock.ConnectTimeout):
            sock.connect((CID_LOCAL, PORT))
        assert 1 <= len(waits) <= 4, waits
        assert twin.connect_ex((CID_LOCAL, PORT)) == errno.EINVAL


UNDER_VSOCK_RUN = """
import ctypes, errno, os, signal, socket, struct
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
ctypes.CDLL(None).setsockopt(s.fileno(), socket.AF_VSOCK, 6, struct.pack("@ll", 0, 1), 16)
child = os.fork()
if child == 0:
    s.connect((1, 5000))
    os._exit(1)
_, status = os.waitpid(child, 0)
print(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
for _ in range(2):
    print(errno.errorcode[s.connect_ex((1, 5000))], flush=True)
"""


@pytest.mark.programs("strace")
def test_so_is_a_connect_of_two_programs_under_vsock_run(
    switch: object, run_preloaded: Callable[..., str], tmp_path: Path
) -> None:
    """strace ends the child where it sends its request, and counts how often the parent waits."""
    log = tmp_path / "log"
    with vsock.create_server(PORT):
        said = run_preloaded(
            *("strace", "-f", "-o", str(log), "-e", "trace=sendto,ppoll"),
            *("-e", "inject=sendto:signal=SIGKILL", sys.executable, "-c", UNDER_VSOCK_RUN),
        )
    assert said.splitlines() == ["True", "ETIMEDOUT", "EINVAL"]
    waits = log.read_text(encoding="utf-8").count("ppoll(")
    assert 1 <= waits <= 100

"""The switch is too busy to accept, and its queue is full: a program's connect waits."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

Start = Callable[..., "subprocess.Popen[str]"]

ENOUGH = 20
SIGNALS = 20


@pytest.fixture
def switch_process(runtime_dir: Path) -> Iterator[int]:
    """A switch that can be stopped; its process id."""
    ready, told = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "switch", "--guest=alpha=3"],
        stderr=told,
        stdout=subprocess.DEVNULL,
    )
    os.close(told)
    with os.fdopen(ready) as log:
        assert any("alpha" in line for line in log), "the switch did not start"
        yield process.pid
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        assert process.wait(ENOUGH) == 0


PROGRAM = """
read, write = os.pipe()
os.set_blocking(write, False)
import signal
signal.set_wakeup_fd(write)  # written to by the handler in C, also while the call goes on
signal.signal(signal.SIGUSR1, lambda *_: None)
sys.stdin.readline()
def tell():
    for _ in range(int(sys.argv[1])):
        os.read(read, 1)
        say("signalled")
threading.Thread(target=tell, daemon=True).start()
sock = socket.socket(AF_VSOCK, SOCK_STREAM)
say(threading.get_native_id())
say(error(sock.connect, (2, 6000)))
"""


def is_waiting(thread: int) -> bool:
    """Whether a thread is blocked in connect (system call 42 of x86_64)."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{thread}/syscall").read_text().split()[0] == "42"
    return False


def until_waiting(thread: int, program: "subprocess.Popen[str]") -> None:
    """Return when the thread is blocked in connect; fail if the program has ended instead."""
    while not is_waiting(thread):
        assert program.poll() is None


def test_signals_while_connect_waits_for_the_switch_change_nothing(
    switch_process: int, runtime_dir: Path, start_python: Start
) -> None:
    """H1: such a connect goes on, and does not fail with ENODEV as without a switch."""
    program = start_python(PROGRAM, str(SIGNALS), stdin=subprocess.PIPE)
    assert program.stdin is not None
    assert program.stdout is not None
    os.kill(switch_process, signal.SIGSTOP)
    with ExitStack() as fillers:
        with contextlib.suppress(BlockingIOError):
            while True:
                filler = fillers.enter_context(socket.socket(socket.AF_UNIX))
                filler.setblocking(False)
                filler.connect(str(runtime_dir / "stream"))
        program.stdin.write("go\n")
        program.stdin.flush()
        thread = int(program.stdout.readline())
        for _ in range(SIGNALS):
            until_waiting(thread, program)
            os.kill(thread, signal.SIGUSR1)
            assert program.stdout.readline() == "signalled\n"
        until_waiting(thread, program)
    os.kill(switch_process, signal.SIGCONT)
    assert program.stdout.readline() == "ECONNRESET\n"

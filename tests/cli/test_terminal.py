"""N28: `vsock cat --tty` on a terminal of its own."""

import contextlib
import os
import pty
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from vsock.cli.main import main

DEADLINE = 30


def test_every_key_goes_to_the_other_end_and_the_terminal_is_restored(runtime_dir: Path) -> None:
    """Ctrl-C and Ctrl-D go to the shell at the other end; Ctrl-] ends the command."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir / "shell"))
        listener.listen()
        listener.settimeout(DEADLINE)
        command = [sys.executable, "-m", "vsock", "cat", "-t", f"unix:{runtime_dir}/shell"]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs) as process:
            shell, _ = listener.accept()
            with shell:
                shell.settimeout(DEADLINE)
                deadline = time.monotonic() + DEADLINE
                while termios.tcgetattr(theirs)[3] & termios.ISIG:
                    assert time.monotonic() < deadline
                os.write(ours, b"a\x03\x04\r")
                assert shell.recv(4, socket.MSG_WAITALL) == b"a\x03\x04\r"
                shell.sendall(b"$ \r\n")
                assert os.read(ours, 4) == b"$ \r\n"
                os.write(ours, b"b\x1dc")
                assert shell.recv(10) in (b"", b"b")
            assert process.wait(DEADLINE) == 0
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    with contextlib.suppress(OSError):
        os.read(ours, 100)
    os.close(ours)


@pytest.mark.usefixtures("runtime_dir")
def test_without_a_terminal_it_is_used_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    """Raw mode needs a terminal."""
    assert main(["cat", "-t", "alpha:5"]) == 2
    assert "--tty needs a terminal" in capsys.readouterr().err

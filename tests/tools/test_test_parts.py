"""`make test` runs all its parts, and its last lines say how each ended (N2, N15)."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "test_parts.py"

MAKEFILE = """
python: ; @echo '======= 3 passed, 1 skipped in 0.10s (0:00:00) ======='
rust: ; @for i in 1 2; do echo 'test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured'; done
wrong: ; @echo 'FAILED tests/x.py::test_y - boom'; echo '== 1 failed, 2 passed in 0.10s =='; false
counts: ; @echo 'instructions: 9 paths as kept'
waiting: ; @echo begun; read -r _ <fifo
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the tool in a folder with a Makefile of the test."""
    (tmp_path / "Makefile").write_text(MAKEFILE)
    os.mkfifo(tmp_path / "fifo")
    running: list[subprocess.Popen[str]] = []

    def started(*targets: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(TOOL), "make", *targets],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield started
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def test_all_parts_run_and_have_a_line_at_the_end(start: Start) -> None:
    """A failing part does not stop the others, and makes the whole fail."""
    process = start("rust", "wrong", "python", "counts")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    last = [re.sub(r" +(\d+ s +)?", " ", line).strip() for line in output.splitlines()[-5:]]
    assert last == [
        "rust passed test result: ok. 8 passed; 0 failed; 2 ignored",
        "wrong FAILED == 1 failed, 2 passed in 0.10s ==",
        "FAILED tests/x.py::test_y - boom",
        "python passed == 3 passed, 1 skipped in 0.10s (0:00:00) ==",
        "counts passed instructions: 9 paths as kept",
    ]


def test_success_is_the_exit_status(start: Start) -> None:
    """If nothing failed, no fault is listed."""
    process = start("python", "counts")
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_silence_is_broken_by_the_time(start: Start, tmp_path: Path) -> None:
    """The elapsed time shows that a silent part has not hung."""
    process = start("waiting")
    assert process.stdout
    seen = [process.stdout.readline() for _ in range(4)]
    assert seen[:3] == ["\n", "---- waiting\n", "begun\n"]
    assert re.fullmatch(r"\(\d+ s\) \n", seen[3])
    with (tmp_path / "fifo").open("w") as fifo:
        fifo.write("go on\n")
    assert process.wait(30) == 0


def test_interrupted_run_says_what_was_not_run(start: Start) -> None:
    """SIGTERM ends the running part and the whole run; the results so far are printed."""
    process = start("counts", "waiting", "python")
    assert process.stdout
    while process.stdout.readline() != "begun\n":
        pass
    process.send_signal(signal.SIGTERM)
    lines = [line.split()[:2] for line in process.stdout.read().splitlines()[-3:]]
    assert lines == [["counts", "passed"], ["waiting", "interrupted"], ["python", "not"]]
    assert process.wait(30) == 130

"""Long silent commands in `make`: a text at the beginning, and a dot every two seconds (N15)."""

import os
import re
import subprocess
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "sign-of-life"


def start(script: str, folder: Path, *options: str) -> "subprocess.Popen[str]":
    """The tool with a shell script as its command; errors go where output goes."""
    return subprocess.Popen(
        [str(TOOL), *options, "doing it", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


def test_quick_command_is_one_line(tmp_path: Path) -> None:
    """The command's output is not shown."""
    process = start("echo chatter", tmp_path)
    assert re.fullmatch(r"doing it \.* \d+ s\n", process.communicate(timeout=30)[0])
    assert process.returncode == 0


def test_long_command_has_dots(tmp_path: Path) -> None:
    """At the end, the duration."""
    os.mkfifo(tmp_path / "fifo")
    process = start("read -r _ <fifo", tmp_path)
    assert process.stdout
    assert process.stdout.read(10) == "doing it ."
    with (tmp_path / "fifo").open("w") as fifo:
        fifo.write("go on\n")
    assert re.fullmatch(r"\.* \d+ s\n", process.communicate(timeout=30)[0])
    assert process.returncode == 0


def test_failure_is_shown_whole(tmp_path: Path) -> None:
    """With the status of the command."""
    process = start("echo out; echo 'error: it broke' >&2; exit 7", tmp_path)
    output, _ = process.communicate(timeout=30)
    assert re.fullmatch(r"doing it \.* failed\nout\nerror: it broke\n", output)
    assert process.returncode == 7


def test_warning_is_shown(tmp_path: Path) -> None:
    """For instance of a compiler."""
    process = start("echo 'warning: unused'", tmp_path)
    output, _ = process.communicate(timeout=30)
    assert re.fullmatch(r"doing it \.* \d+ s\nwarning: unused\n", output)


def test_output_is_shown_as_it_comes_if_that_is_asked_for(tmp_path: Path) -> None:
    """The dots are between the lines of the command."""
    os.mkfifo(tmp_path / "fifo")
    process = start("echo first; read -r _ <fifo; echo last", tmp_path, "--show")
    assert process.stdout
    seen = ""
    while not seen.endswith("first\n."):
        seen += process.stdout.read(1)
    assert re.fullmatch(r"doing it \n\.*first\n\.", seen)
    with (tmp_path / "fifo").open("w") as fifo:
        fifo.write("go on\n")
    output, _ = process.communicate(timeout=30)
    assert re.fullmatch(r"\.*last\ndoing it \d+ s\n", output)

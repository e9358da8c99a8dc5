"""Numbers and tables for people."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from vsock.cli.output import bytes_text, print_table, seconds_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (64 << 20, "64.0 MiB"),
        (5 << 60, "5242880.0 TiB"),
    ],
)
def test_bytes_have_a_unit_that_fits(count: int, text: str) -> None:
    """Larger numbers keep the largest unit."""
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.96, "10.0s"), (59.9, "59s"), (185, "3m05s"), (7621, "2h07m")],
)
def test_seconds_are_as_exact_as_one_reads(seconds: float, text: str) -> None:
    """Long durations are shown without fractions of a second."""
    assert seconds_text(seconds) == text


def test_table_keeps_brackets_and_long_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """A name is not treated as markup, and in a pipe nothing is cut."""
    print_table("Things", ("name", ">count"), [("[red]x", "1"), ("y" * 90, "22")])
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "y" * 90 in shown


def test_empty_table_says_none(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty table would look like an error."""
    print_table("Flows", ("id",), [])
    assert capsys.readouterr().out == "Flows: none\n"


TABLE = """
from vsock.cli.output import print_table
print_table(
    "Guests",
    ("name", ">cid", "state", ">sent", "socket"),
    [
        ("alpha", "3", "running", "1.0 KiB", "/run/user/1000/vsock/guests/alpha.sock"),
        ("a-name-that-is-as-long-as-one-may-be", "4294967294", "waiting", "0 B", "/x/y.sock"),
    ],
)
"""


def on_terminal(width: int, **environment: str) -> list[str]:
    """The lines of TABLE on a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, width, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", TABLE],
        stdin=theirs,
        stdout=theirs,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment,
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # read of a terminal without processes returns EIO
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert process.wait(30) == 0
    return shown.decode().splitlines()


@pytest.mark.parametrize("width", [120, 80, 60, 40, 20])
def test_row_of_a_table_is_one_line_on_every_terminal(width: int) -> None:
    """N10: one line per row, none empty or longer than the terminal's width, and names are not broken."""
    lines = on_terminal(width)
    assert len(lines) == 4
    assert all(0 < len(line) <= width for line in lines)
    assert lines[0] == "Guests"
    assert lines[2].startswith("  alpha ")


def test_long_column_comes_last_and_is_cut() -> None:
    """N10: at 80 columns only the path and the longest name are cut."""
    _, headings, alpha, longest = on_terminal(80)
    assert headings.split() == ["name", "cid", "state", "sent", "socket"]
    assert alpha.split()[:-1] == ["alpha", "3", "running", "1.0", "KiB"]
    assert alpha.split()[-1].startswith("/run/user/")
    assert alpha.endswith("…")
    assert longest.split()[1:] == ["4294967294", "waiting", "0", "B", "/x/y.sock"]


def test_cut_is_marked_in_letters_that_the_terminal_has() -> None:
    """An encoding without an ellipsis causes no traceback."""
    assert on_terminal(40, PYTHONIOENCODING="ascii")[2].endswith("~")

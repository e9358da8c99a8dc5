"""Numbers and tables as people see them."""

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
    """The largest unit takes what is left."""
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.96, "10.0s"), (59.9, "59s"), (185, "3m05s"), (7621, "2h07m")],
)
def test_seconds_are_as_exact_as_one_reads(seconds: float, text: str) -> None:
    """Nobody reads the milliseconds of an hour."""
    assert seconds_text(seconds) == text


def test_table_keeps_brackets_and_long_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """A name is not markup, and a program that reads the table gets all of it."""
    print_table("Things", ("name", ">count"), [("[red]x", "1"), ("y" * 90, "22")])
    shown = capsys.readouterr().out
    assert "[red]x" in shown
    assert "y" * 90 in shown


def test_empty_table_says_none(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty frame would look like a fault."""
    print_table("Flows", ("id",), [])
    assert capsys.readouterr().out == "Flows: none\n"

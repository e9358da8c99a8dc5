"""Every program and command on the pages of the guide runs, with the output that the page shows."""

import os
import re
from pathlib import Path

import pytest
from tests.guide.session import Session, commands, matches
from tests.programs import need

from vsock.testing import GuestUnavailable, find_image
from vsock.testing.plugin import REQUIRED_VARIABLE

GUIDE = Path(__file__).parents[2] / "docs/guide"
PAGES = sorted(GUIDE.glob("*.md"))


def has_guest(page: Path) -> bool:
    """Whether the page has commands in a Linux guest."""
    return "\nalpha# " in page.read_text(encoding="utf-8")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.vm] if has_guest(page) else [], id=page.name)
        for page in PAGES
    ],
)
def test_page_does_what_it_says(page, tmp_path, runtime_dir):
    """In an empty directory, without a running switch."""
    if has_guest(page) and not _has_image():
        pytest.skip("no image of a User-Mode Linux guest: run `make guests`")
    text = page.read_text(encoding="utf-8")
    need(set(re.findall(r"^\$ .*vsock run -- (\w+)", text, re.MULTILINE)))
    session = Session(tmp_path, runtime_dir)
    try:
        session.read(text)
    finally:
        session.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_run_while_a_switch_runs(page, tmp_path, runtime_dir, switch):
    """N8: a reader who follows the guide in order has a switch running since its second page."""
    session = Session(tmp_path, runtime_dir)
    try:
        session.run_programs(page.read_text(encoding="utf-8"))
    finally:
        session.close()


def _has_image() -> bool:
    try:
        find_image("uml")
    except GuestUnavailable:
        if os.environ.get(REQUIRED_VARIABLE):
            raise
        return False
    return True


@pytest.mark.parametrize("page", [*PAGES, GUIDE.parent / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Links lead to files of this repository, and every page is in the index."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    assert page.name == "README.md" or f"({page.name})" in (GUIDE / "README.md").read_text()


def test_commands_are_told_from_output():
    """Comments are not run; `# leave it running` is recognized."""
    first, second, third = commands(
        "$ one  # why\nsaid\n\n$ two   # leave it running\nalpha# three\n"
    )
    assert (first.text, first.output, first.is_left_running) == ("one", "said\n", False)
    assert (second.text, second.output, second.is_left_running) == ("two", None, True)
    assert (third.where, third.text) == ("alpha#", "three")


@pytest.mark.parametrize(
    ("expected", "output", "is_so"),
    [
        ("a\nb", "a  \nb\n\n", True),
        ("a\nb", "a\nc", False),
        ("… ms", "0.1 ms", True),
        ("first\n…\nlast", "first\n1\n2\nlast", True),
        ("a.c", "abc", False),
        ("a  b\n c", "  a b\n     c", True),
        ("", "more", False),
    ],
)
def test_output_is_compared(expected, output, is_so):
    """Literally, except … and the number of spaces."""
    assert matches(expected, output) is is_so

"""The output of the demo: on a narrow terminal, and to a user who has just built it."""

import io
import os
import shutil
from pathlib import Path

import pytest

from vsock.demo.report import CheckReport, GuestReport, Report
from vsock.demo.screen import Screen, _Output


def screen_of(width: int, *, is_terminal: bool = True) -> tuple[Screen, io.StringIO]:
    """A screen, and its output."""
    written = io.StringIO()
    screen = Screen()
    screen._console = _Output(
        file=written, width=width, force_terminal=is_terminal, color_system=None, highlight=False
    )
    return screen, written


@pytest.mark.parametrize("width", [80, 60])
def test_long_detail_goes_on_below_itself(width: int) -> None:
    """N28: continuation lines are indented, not at the left edge, where a check begins."""
    screen, written = screen_of(width)
    screen.check(CheckReport("refused port", True, 1.0, "refused: " + "host to alpha 0.3 ms, " * 6))
    first, *rest = written.getvalue().splitlines()
    assert first.startswith("ok   refused port")
    assert rest
    assert all(line.startswith(" " * 39) and len(line) <= width for line in rest)


def test_pipe_gets_a_line_for_each_check() -> None:
    """In a pipe lines are not broken at the width of a terminal."""
    screen, written = screen_of(80, is_terminal=False)
    screen.check(CheckReport("refused port", True, 1.0, "x " * 100))
    assert written.getvalue().count("\n") == 1


def test_next_steps_begin_with_finding_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    """N11: after `make demo` there is no `vsock` on PATH, and all next steps need it."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert shutil.which("vsock") is None
    for show in (Screen.next_steps, kept):
        screen, written = screen_of(80)
        show(screen)
        lines = [line for line in written.getvalue().splitlines() if line.startswith("  ")]
        assert lines[0].startswith(("  . ", "  PATH="))
        assert all(len(line) <= 80 for line in lines)


def kept(screen: Screen) -> None:
    """The output with `--keep`."""
    screen.kept(Path("/tmp/vsock-demo-x"), [GuestReport("alpha", 3, "qemu", "6.1")])
    screen.kept_server(Path("/tmp/vsock-demo-x/state"), "alpha")


def test_next_steps_are_all_where_vsock_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If `vsock` is on PATH, no step is needed before them."""
    (tmp_path / "vsock").write_text("#!/bin/sh\n")
    (tmp_path / "vsock").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    screen, written = screen_of(80)
    screen.next_steps()
    assert written.getvalue().splitlines()[2].startswith("  vsock demo --keep")


def test_machines_have_names_that_people_know() -> None:
    """N21: the output says "User-Mode Linux", not "uml"."""
    screen, written = screen_of(80)
    guests = [GuestReport(vmm, 3, vmm, None) for vmm in ("qemu", "uml", "userspace")]
    screen.guests(guests, [])
    assert "User-Mode Linux" in written.getvalue()
    assert "QEMU" in written.getvalue()


def test_demo_that_came_to_no_check_does_not_count_them() -> None:
    """N9: no "0 of 0 checks passed" after a QEMU that failed to start."""
    screen, written = screen_of(80)
    screen.end(Report())
    assert written.getvalue() == ""

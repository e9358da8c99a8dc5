"""What the demo shows on a terminal: steps while guests boot, a line per check, what to try next."""

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsock.demo.report import CheckReport, GuestReport, Report

if TYPE_CHECKING:
    from rich.status import Status

SHELL_PORT = 2323
"""Where `--keep` serves a shell in each Linux guest."""


class _Output(Console):
    """A console whose end is told as of any other file, so that the guests are stopped first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Screen:
    """Prints to standard output or error, for one thread: who prints learns that nobody reads any more.

    Every method may raise OSError.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._console = _Output(stderr=stderr)
        self._steps: dict[str, str] = {}
        self._status: Status | None = None

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show that something is going on, until the end of the block or `rest`."""
        with self._console.status(escape(what)) as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    def rest(self) -> None:
        """Nothing is going on any more."""
        if self._status is not None:
            self._status.stop()

    def now(self, what: str) -> None:
        """Say what is going on."""
        if self._status is not None:
            self._status.update(escape(what))

    def step(self, guest: str, what: str) -> None:
        """A guest has got a step further."""
        self._steps[guest] = what
        shown = "   ".join(f"[bold]{name}[/bold] {escape(at)}" for name, at in self._steps.items())
        if self._status is not None:
            self._status.update(shown)
        if not self._console.is_terminal:
            self._console.print(f"  {guest}: {escape(what)}")

    def guests(self, guests: list[GuestReport], notes: list[str]) -> None:
        """The guests that are there."""
        table = Table(box=None, pad_edge=False)
        for heading in ("guest", "CID", "runs in", "kernel"):
            table.add_column(heading)
        for guest in guests:
            table.add_row(guest.name, str(guest.cid), guest.vmm, guest.kernel or "none")
        self._console.print(table)
        for note in notes:
            self._console.print(f"[yellow]{escape(note)}[/yellow]", soft_wrap=True)
        self._console.print()

    def check(self, check: CheckReport) -> None:
        """A check is over."""
        mark = "[green]ok  [/green]" if check.ok else "[bold red]FAIL[/bold red]"
        name = f"{check.name:<24}"
        detail = escape(check.detail)
        self._console.print(f"{mark} {name} {check.seconds:5.1f} s  {detail}", soft_wrap=True)

    def fault(self, message: str) -> None:
        """Something went wrong outside of any check."""
        self._console.print(f"[bold red]FAIL[/bold red] {escape(message)}", soft_wrap=True)

    def end(self, report: Report) -> None:
        """The result of it all, if it came to checks."""
        if not report.checks:
            return
        passed = sum(check.ok for check in report.checks)
        colour = "green" if report.is_well else "bold red"
        self._console.print(
            f"\n[{colour}]{passed} of {len(report.checks)} checks passed[/{colour}]"
            f" in {report.seconds:.0f} s"
        )

    def next_steps(self) -> None:
        """What to try when everything is gone again."""
        self._console.print(
            "\nNext:\n"
            "  vsock demo --keep              the same, and switch and guests stay for you to use\n"
            "  vsock switch --guest web=3     a switch of your own, for a guest of your own;\n"
            "  vsock qemu-args web            what to add to QEMU's command line for it\n"
            "  vsock ping web                 once it is up: how fast does it answer?\n"
            "  vsock cat -l 5000              wait for a connection from it",
            highlight=False,
            soft_wrap=True,
        )

    def kept(self, runtime_dir: Path, guests: list[GuestReport]) -> None:
        """What to try while everything is still there."""
        lines = [
            "",
            "Switch and guests stay until Ctrl-C. In another terminal:",
            f"  export VSOCK_RUNTIME_DIR={shlex.quote(str(runtime_dir))}",
            "  vsock ls                       guests, listeners and flows",
            f"  vsock ping {guests[0].name}",
        ]
        for guest in guests:
            if guest.kernel is not None:
                command = f"vsock cat {guest.name}:{SHELL_PORT}"
                lines.append(f"  {command:<30} a shell in {guest.name}")
        self._console.print("\n".join(lines), highlight=False, soft_wrap=True)

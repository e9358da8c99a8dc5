"""The output of the demo on a terminal: steps while guests boot, a line per check, and next steps."""

import contextlib
import errno
import os
import shlex
import shutil
import sys
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
"""The port on which `--keep` serves a shell in each Linux guest."""


_RUNS_IN = {"qemu": "QEMU", "uml": "User-Mode Linux", "userspace": "this process"}


def _activation() -> str:
    """The line that puts `vsock` on PATH, if it is not there."""
    if shutil.which("vsock"):
        return ""
    folder = Path(sys.executable).parent
    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    if (folder / "activate").exists():
        return f"  . {shlex.quote(str(folder / 'activate'))}\n"
    return f"  PATH={shlex.quote(str(folder))}:$PATH\n"


class _Output(Console):
    """A console that raises BrokenPipeError as any other file, so that the guests are stopped first."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Screen:
    """Prints to standard output or error, from one thread, which gets the error if the reader has gone.

    Every method may raise OSError.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self._console = _Output(stderr=stderr)
        self._steps: dict[str, str] = {}
        self._status: Status | None = None

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show a running activity until the end of the block or `rest`."""
        with self._console.status(escape(what)) as status:
            self._status = status
            try:
                yield
            finally:
                self._status = None

    def rest(self) -> None:
        """End the running activity."""
        if self._status is not None:
            self._status.stop()

    def now(self, what: str) -> None:
        """Show the present activity."""
        if self._status is not None:
            self._status.update(escape(what))

    def step(self, guest: str, what: str) -> None:
        """Show the step that a guest has reached."""
        self._steps[guest] = what
        shown = "   ".join(f"[bold]{name}[/bold] {escape(at)}" for name, at in self._steps.items())
        if self._status is not None:
            self._status.update(shown)
        if not self._console.is_terminal:
            self._console.print(f"  {guest}: {escape(what)}")

    def guests(self, guests: list[GuestReport], notes: list[str]) -> None:
        """Show the guests."""
        table = Table(box=None, pad_edge=False)
        for heading in ("guest", "CID", "runs in", "kernel"):
            table.add_column(heading)
        for guest in guests:
            runs_in = _RUNS_IN.get(guest.vmm, guest.vmm)
            table.add_row(guest.name, str(guest.cid), runs_in, guest.kernel or "none")
        self._console.print(table)
        for note in notes:
            shown = f"[yellow]{escape(note)}[/yellow]"
            self._console.print(shown, soft_wrap=not self._console.is_terminal)
        self._console.print()

    def check(self, check: CheckReport) -> None:
        """Show the result of a check."""
        mark = "[green]ok  [/green]" if check.ok else "[bold red]FAIL[/bold red]"
        line = f"{mark} {check.name:<24} {check.seconds:5.1f} s  "
        if not self._console.is_terminal:
            self._console.print(f"{line}{escape(check.detail)}", soft_wrap=True)
            return
        # Continuation lines are indented, not at the left edge.
        row = Table.grid()
        row.add_column(no_wrap=True)
        row.add_column(overflow="fold")
        row.add_row(line, escape(check.detail))
        self._console.print(row)

    def fault(self, message: str) -> None:
        """Show an error outside the checks."""
        self._console.print(f"[bold red]FAIL[/bold red] {escape(message)}", soft_wrap=True)

    def end(self, report: Report) -> None:
        """Show the result, if there were checks."""
        if not report.checks:
            return
        passed = sum(check.ok for check in report.checks)
        colour = "green" if report.is_well else "bold red"
        self._console.print(
            f"\n[{colour}]{passed} of {len(report.checks)} checks passed[/{colour}]"
            f" in {report.seconds:.0f} s"
        )

    def next_steps(self) -> None:
        """Show what to try after the demo."""
        self._console.print(
            f"\nNext:\n{_activation()}"
            "  vsock demo --keep              the same, and the guests stay for you to use\n"
            "  vsock switch --guest web=3     your own switch, for your own guest\n"
            "  vsock qemu-args web            the options that attach QEMU to it\n"
            "  vsock ping web                 when it runs: how fast does it answer?\n"
            "  vsock cat -l 5000              wait for a connection from it",
            highlight=False,
            soft_wrap=True,
        )

    def kept(self, runtime_dir: Path, guests: list[GuestReport]) -> None:
        """Show what to try while switch and guests run."""
        lines = [
            "",
            "Switch and guests stay until Ctrl-C. In another terminal:",
            *_activation().splitlines(),
            f"  export VSOCK_RUNTIME_DIR={shlex.quote(str(runtime_dir))}",
            "  vsock ls                       guests, listeners and flows",
            f"  vsock ping {guests[0].name}",
        ]
        for guest in guests:
            if guest.kernel is not None:
                command = f"vsock cat -t {guest.name}:{SHELL_PORT}"
                lines.append(f"  {command:<30} a shell in {guest.name}; Ctrl-] ends it")
        self._console.print("\n".join(lines), highlight=False, soft_wrap=True)

    def kept_server(self, state_home: Path, guest: str) -> None:
        """Show what to try in the guest that has an SSH server."""
        self._console.print(
            f"  export XDG_STATE_HOME={shlex.quote(str(state_home))}\n"
            f"  vsock shell {guest:<18} by SSH, as are `vsock exec`, `cp` and `mount`",
            highlight=False,
            soft_wrap=True,
        )

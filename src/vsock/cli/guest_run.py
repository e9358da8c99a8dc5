"""`vsock guest run`: a program as a guest, without a virtual machine.

This process is the guest and the program its child. The child's sockets belong to this process's node,
which the child finds by ``VSOCK_RUNTIME_DIR``, as it would find a switch.
"""

import os
import select
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vsock._system.waiting import SIGNAL_SECONDS
from vsock.cli.completion import guests as known_guests
from vsock.cli.options import runtime_dir_option
from vsock.control.client import ControlClient

if TYPE_CHECKING:
    from vsock.guest import Guest

__all__ = ["Signals", "run"]

_NOT_FOUND: Final = 127
_CANNOT: Final = 126
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)
_PATIENCE: Final = 10.0  # seconds between SIGTERM and SIGKILL
_RETRY_MILLISECONDS: Final = 200
_JOIN_SECONDS: Final = 5.0


@click.command(
    short_help="Run COMMAND as guest NAME.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("name", shell_complete=known_guests)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--reconnect",
    is_flag=True,
    help="When the switch ends, wait until it runs again. Listeners then go on; connections have ended.",
)
@click.option(
    "--guard/--no-guard",
    default=True,
    help="Keep the kernel's own AF_VSOCK out of COMMAND's reach. Set-uid programs then stay "
    "unprivileged. [on]",
)
@runtime_dir_option
def run(
    name: str, command: tuple[str, ...], reconnect: bool, guard: bool, runtime_dir: Path | None
) -> int:
    """Run COMMAND as guest NAME: its vsock sockets are the guest's.

    For programs that use this package. Start other programs by `vsock guest run NAME vsock run ...`;
    without that, AF_VSOCK is not supported in them, because the kernel's own is not the guest's.
    The guest leaves the switch when COMMAND ends. Exit code: that of COMMAND; 1 if the switch ends or
    the guest is removed from it, which also ends COMMAND.
    """
    client = ControlClient(runtime_dir)
    record = client.guest(name)
    if record.state != "waiting":
        raise _runs_already(record.name)
    from vsock.guest import Guest

    signals = Signals()
    if guard:
        from vsock.cli.guard import raise_guard_or_refuse

        raise_guard_or_refuse()
    guest = Guest(record.socket)
    try:
        guest.start()
    except OSError:
        # Another process may have attached first; the device's message would be for developers.
        if client.guest(record.name).state != "waiting":
            raise _runs_already(record.name) from None
        raise
    with ExitStack() as stack:
        stack.callback(guest.stop)
        if signals.kept:
            return 128 + signals.kept[0]
        environment = os.environ | {"VSOCK_RUNTIME_DIR": guest.transport.directory}
        return _run(command, environment, signals, _Attachment(guest, record.name, reconnect))


def _runs_already(name: str) -> click.ClickException:
    return click.ClickException(f"guest {name} runs already: one machine per guest")


class _Attachment:
    """The attachment to the switch while the command runs."""

    def __init__(self, guest: "Guest", name: str, reconnect: bool) -> None:
        self._guest = guest
        self._name = name
        self._reconnect = reconnect

    def wait(self, child: "subprocess.Popen[bytes]") -> int:
        """Wait for the end of `child`, or of the switch; returns the exit code."""
        pidfd = os.pidfd_open(child.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(self._guest, select.POLLIN)
            while child.poll() is None:
                poll.poll(SIGNAL_SECONDS * 1000)
                if child.poll() is None and self._guest.wait(0) is not None:
                    if not self._reconnect:
                        return self._end(child)
                    self._come_back(child, pidfd)
        finally:
            os.close(pidfd)
        return child.returncode if child.returncode >= 0 else 128 - child.returncode

    def _end(self, child: "subprocess.Popen[bytes]") -> int:
        self._say("the switch ended, or the guest was removed from it; COMMAND is ended")
        child.terminate()
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return 1

    def _come_back(self, child: "subprocess.Popen[bytes]", pidfd: int) -> None:
        """Join again as soon as there is a switch, unless `child` ends before."""
        self._say("the switch ended, or the guest was removed from it; waiting for it")
        over = select.poll()
        over.register(pidfd, select.POLLIN)
        while not over.poll(_RETRY_MILLISECONDS):
            with suppress(OSError):  # there is no switch yet
                self._guest.rejoin(_JOIN_SECONDS)
                self._say(f"back, with CID {self._guest.cid}")
                return

    def _say(self, what: str) -> None:
        click.echo(f"vsock guest run: {self._name}: {what}", err=True)


class Signals:
    """Passes signals on to the command; keeps those that arrive before it runs.

    The handlers are installed before any socket or file is made, so that none is left behind. A signal
    that is ignored stays ignored in the command, as `nohup` requires.
    """

    def __init__(self) -> None:
        self.kept: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, *_PASSED_ON):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    def give_to(self, child: "subprocess.Popen[bytes]") -> None:
        """Send the signals that were kept, and all later ones, to `child`."""
        self._child = child
        for number in self.kept:
            self._take(number)

    def _take(self, number: int, _frame: object = None) -> None:
        if self._child is None:
            self.kept.append(number)
        elif number in _PASSED_ON:
            # The terminal sends Ctrl-C to both processes; the command decides whether it ends.
            self._child.send_signal(number)


def _run(
    command: tuple[str, ...],
    environment: dict[str, str],
    signals: Signals,
    attachment: _Attachment,
) -> int:
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        click.echo(f"vsock guest run: {command[0]}: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT
    signals.give_to(child)
    return attachment.wait(child)

"""`vsock guest run`: a program as a guest, without a virtual machine.

We are the guest and the program is our child: its sockets live in our node, which it finds by
``VSOCK_RUNTIME_DIR`` as it would find a switch.
"""

import os
import signal
import subprocess
from pathlib import Path

import click

from vsock.cli.options import runtime_dir_option
from vsock.switch.client import Client

__all__ = ["Signals", "run"]

_NOT_FOUND = 127
_CANNOT = 126
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


@click.command(
    short_help="Be guest NAME while COMMAND runs.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@runtime_dir_option
def run(name: str, command: tuple[str, ...], runtime_dir: Path | None) -> int:
    """Be guest NAME while COMMAND runs: its vsock sockets are the guest's.

    For programs that use this package; others are started by `vsock guest run NAME vsock run ...`.
    The guest is gone when COMMAND ends. Exit code: that of COMMAND.
    """
    record = Client(runtime_dir).guest(name)
    if record.state != "waiting":
        raise click.ClickException(f"guest {record.name} runs already: one machine per guest")
    from vsock.guest import Guest

    signals = Signals()
    with Guest(record.socket) as guest:
        if signals.kept:
            return 128 + signals.kept[0]
        environment = os.environ | {"VSOCK_RUNTIME_DIR": guest.transport.directory}
        return _run(command, environment, signals)


class Signals:
    """The signals that would end us: the command's once it runs, kept until then.

    Taken before anything is made that would stay behind. One that is ignored ends nobody, and stays
    ignored in the command, as `nohup` wants it.
    """

    def __init__(self) -> None:
        self.kept: list[int] = []
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, *_PASSED_ON):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._take)

    def give_to(self, child: "subprocess.Popen[bytes]") -> None:
        """Pass what was kept, and all that comes, on to `child`."""
        self._child = child
        for number in self.kept:
            self._take(number)

    def _take(self, number: int, _frame: object = None) -> None:
        if self._child is None:
            self.kept.append(number)
        elif number in _PASSED_ON:
            # Ctrl-C goes to both of us; whether it is the end is the command's to say.
            self._child.send_signal(number)


def _run(command: tuple[str, ...], environment: dict[str, str], signals: Signals) -> int:
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        click.echo(f"vsock guest run: {command[0]}: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT
    signals.give_to(child)
    status = child.wait()
    return status if status >= 0 else 128 - status

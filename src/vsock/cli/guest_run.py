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

__all__ = ["run"]

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

    with Guest(record.socket) as guest:
        return _run(command, os.environ | {"VSOCK_RUNTIME_DIR": guest.transport.directory})


def _run(command: tuple[str, ...], environment: dict[str, str]) -> int:
    # Ctrl-C goes to both of us; whether it is the end is the command's to say.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        click.echo(f"vsock guest run: {command[0]}: {error.strerror}", err=True)
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT
    for number in _PASSED_ON:
        signal.signal(number, lambda received, _: child.send_signal(received))
    status = child.wait()
    return status if status >= 0 else 128 - status

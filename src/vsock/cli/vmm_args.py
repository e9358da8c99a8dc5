"""`vsock qemu-args` and `vsock uml-args`: the options that attach a VMM to the switch."""

import shlex
from pathlib import Path

import click

from vsock import vmm
from vsock.cli.completion import guests as known_guests
from vsock.cli.options import json_option, runtime_dir_option
from vsock.cli.output import print_json
from vsock.control.client import ControlClient
from vsock.control.model import NOTIFY_PORT

__all__ = ["qemu_args", "uml_args"]

_memory_option = click.option(
    "--memory",
    type=click.IntRange(min=64),
    default=vmm.DEFAULT_MEMORY_MIB,
    show_default=True,
    metavar="MIB",
    help="The guest's memory in MiB; it is set here because it must be shared with the switch.",
)


@click.command()
@click.argument("name", shell_complete=known_guests)
@_memory_option
@click.option(
    "--event-queue",
    is_flag=True,
    help="Use QEMU's generic device (QEMU 11.1 and later): it notifies the guest of a new CID and of resets.",
)
@click.option(
    "--notify",
    is_flag=True,
    help="Let systemd in the guest say when it is ready, for `vsock wait` (a credential).",
)
@click.option(
    "--ssh",
    is_flag=True,
    help="Let your key in over vsock, and --notify: for `vsock exec` (systemd 256 and later, with sshd).",
)
@click.option("--user", default="root", help="With --ssh: let your key in as this user too.")
@json_option
@runtime_dir_option
def qemu_args(
    name: str,
    memory: int,
    event_queue: bool,
    notify: bool,
    ssh: bool,
    user: str,
    as_json: bool,
    runtime_dir: Path | None,
) -> None:
    """Print the options of QEMU for guest NAME.

    qemu-system-x86_64 $(vsock qemu-args NAME) -kernel ...
    """
    record = ControlClient(runtime_dir).guest(name)
    arguments = vmm.qemu_args(
        record.socket, record.name, memory_mib=memory, event_queue=event_queue
    )
    credentials: dict[str, str | bytes] = {}
    if notify or ssh:
        credentials |= vmm.notify_credential(NOTIFY_PORT)
    if ssh:
        from vsock.ssh.identity import Identity

        try:
            credentials |= vmm.ssh_credentials(Identity.of_user().public_key(), user)
        except ValueError as error:
            raise click.UsageError(f"--user: {error}") from None
    elif user != "root":
        raise click.UsageError("--user is for --ssh")
    _print_arguments([*arguments, *vmm.credential_args(credentials)], as_json)


@click.command()
@click.argument("name", shell_complete=known_guests)
@_memory_option
@json_option
@runtime_dir_option
def uml_args(name: str, memory: int, as_json: bool, runtime_dir: Path | None) -> None:
    """Print the options of User-Mode Linux for guest NAME.

    linux.uml $(vsock uml-args NAME) initrd=...
    """
    record = ControlClient(runtime_dir).guest(name)
    _print_arguments(vmm.uml_args(record.socket, record.name, memory_mib=memory), as_json)


def _print_arguments(arguments: list[str], as_json: bool) -> None:
    if as_json:
        print_json(arguments)
    else:
        click.echo(shlex.join(arguments))

"""`vsock guest host-key` and `vsock guest setup`: trust in a guest, and how a guest gets an sshd on vsock."""

import re
from pathlib import Path
from typing import Final

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import json_option, runtime_dir_option, transport_of
from vsock.cli.output import print_json

__all__ = ["host_key", "setup"]

_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
"""As useradd(8) takes it; it becomes part of commands."""


@click.command("host-key", short_help="Show, tell or forget the SSH host key of a guest.")
@click.argument("name", shell_complete=known_guests)
@click.argument("key", default="")
@click.option(
    "--forget", is_flag=True, help="Forget it: the next one that the guest shows is pinned."
)
@json_option
@runtime_dir_option
def host_key(name: str, key: str, forget: bool, as_json: bool, runtime_dir: Path | None) -> None:
    """Show the host key that is pinned for guest NAME.

    With KEY ("ssh-ed25519 AAAA...", as in /etc/ssh/ssh_host_ed25519_key.pub) it is told in advance. Without, the
    first one that the guest shows is pinned.
    """
    from vsock.errors import UsageError
    from vsock.ssh.host_keys import HostKey, HostKeys
    from vsock.ssh.hosts import parse_host, pinned_as

    if key and forget:
        raise click.UsageError("KEY and --forget exclude each other")
    pinned = pinned_as(parse_host(name), 22, transport_of(runtime_dir, None))
    keys = HostKeys.of_user()
    if key:
        try:
            keys.pin(pinned, HostKey.parse(key))
        except UsageError as error:
            raise click.UsageError(f"{key!r}: {error}") from None
    elif forget and not keys.forget(pinned):
        raise click.ClickException(f"no host key of {name} is pinned")
    known = [str(one) for one in keys.of(pinned)]
    if as_json:
        print_json(known)
    elif forget:
        click.echo(f"the host key of {name} is forgotten; the next one that it shows is pinned")
    elif not known:
        raise click.ClickException(f"no host key of {name} is pinned: it has not been connected to")
    else:
        click.echo("\n".join(known))


@click.command(short_help="Show how a guest gets an sshd on vsock, with your key.")
@click.argument("name", shell_complete=known_guests)
@click.option("--user", default="root", show_default=True, help="The user in the guest.")
@click.option(
    "--for",
    "system",
    type=click.Choice(["systemd", "older-systemd", "cloud-init", "busybox", "none"]),
    help="Only for this kind of guest.",
)
def setup(name: str, user: str, system: str | None) -> None:
    """Print the lines that make the sshd of guest NAME listen on vsock, and let you in.

    A guest with systemd 256 or later and openssh-server needs only `vsock qemu-args NAME --ssh`.
    """
    from vsock.ssh.identity import Identity
    from vsock.ssh.setup import instructions

    if not _USER.fullmatch(user):
        raise click.UsageError(f"{user!r} is no name of a user")
    click.echo(instructions(name, user, Identity.of_user().public_key(), system), nl=False)

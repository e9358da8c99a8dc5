"""`vsock ssh-config` and `vsock ssh-known-hosts`: OpenSSH's own programs, and guests."""

import sys
from pathlib import Path

import click

from vsock.cli.options import runtime_dir_option, transport_of, transport_option

__all__ = ["ssh_config", "ssh_known_hosts"]

_NONE = "NONE"
"""What ssh gives for the key while it has none yet."""


@click.command(short_help="Print or install the lines by which ssh reaches guests.")
@click.option("--user", default="root", show_default=True, help="The user, if none is named.")
@click.option("--install", "change", flag_value="install", help="Include them in ~/.ssh/config.")
@click.option("--uninstall", "change", flag_value="uninstall", help="Undo --install.")
@runtime_dir_option
def ssh_config(user: str, change: str | None, runtime_dir: Path | None) -> None:
    """Print the lines for ~/.ssh/config by which `ssh alpha.vsock` reaches guest alpha.

    They make ssh, scp, sftp, rsync, git and editors reach the guests of the switch without options. Nobody is
    asked to trust a host key: it is pinned under the guest's name at first use, as in `vsock exec`.
    """
    from vsock.ssh.config import fragment, install, uninstall
    from vsock.ssh.identity import Identity

    if change == "uninstall":
        _tell(uninstall(Path.home()))
        return
    Identity.of_user().make()
    options = [] if runtime_dir is None else ["--runtime-dir", str(runtime_dir.absolute())]
    # -P: ssh runs this in any directory, whose modules are not ours.
    text = fragment([sys.executable, "-P", "-m", "vsock.cli"], options, user=user)
    if change == "install":
        _tell(install(text, Path.home()))
    else:
        click.echo(text, nl=False)


@click.command(short_help="Print the host key of a guest, as OpenSSH's KnownHostsCommand.")
@click.argument("name")
@click.argument("host", default="")
@click.argument("algorithm", metavar="[TYPE", default=_NONE)
@click.argument("key", metavar="KEY]", default=_NONE)
@transport_option
@runtime_dir_option
def ssh_known_hosts(
    name: str, host: str, algorithm: str, key: str, transport: str | None, runtime_dir: Path | None
) -> None:
    """Print the host keys of guest NAME that are known, as lines of known_hosts about HOST.

    For `KnownHostsCommand vsock ssh-known-hosts %n %H %t %K` in ssh_config. The KEY that HOST has shown is pinned
    if none is yet.
    """
    from vsock.errors import HostKeyChanged
    from vsock.ssh.host_keys import HostKey, HostKeys
    from vsock.ssh.hosts import parse_host, pinned_as

    if (algorithm == _NONE) != (key == _NONE):
        raise click.UsageError(f"a key is TYPE and KEY: {algorithm} alone is none")
    pinned = pinned_as(parse_host(name), 22, transport_of(runtime_dir, transport))
    keys = HostKeys.of_user()
    if key != _NONE:
        try:
            keys.check(pinned, HostKey(algorithm, key))
        except HostKeyChanged as error:
            # ssh compares by itself, and ends; it does not say what to do.
            click.echo(f"vsock: {error.strerror}", err=True)
    for known in keys.of(pinned):
        # With another port than 22 ssh looks for [HOST]:PORT.
        click.echo(f"{host or name} {known}")


def _tell(changed: list[Path]) -> None:
    if not changed:
        click.echo("nothing to change")
    for path in changed:
        click.echo(f"{'changed' if path.exists() else 'removed'} {path}")

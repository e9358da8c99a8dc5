"""`vsock mount` and `vsock umount`: folders of guests on this host."""

import errno
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vsock._system.text import printable
from vsock.cli.completion import guests as known_guests
from vsock.cli.options import json_option, session_options
from vsock.cli.output import plain, print_json, print_table, process_text

if TYPE_CHECKING:
    from vsock.ssh.mounts import Mount

__all__ = ["mount", "umount"]

_MOST_USERS: Final = 5


@click.command(short_help="Mount a folder of a guest on this host, or list such mounts.")
@click.argument("source", required=False, metavar="[NAME:PATH", shell_complete=known_guests)
@click.argument("folder", required=False, metavar="DIR]")
@click.option("--read-only", is_flag=True, help="Let nothing be written.")
@click.option(
    "--reconnect", is_flag=True, help="Connect again, when the guest has gone and has come back."
)
@click.option("--encrypted", is_flag=True, help="Let ssh carry the data, too.")
@click.option(
    "--follow-links",
    is_flag=True,
    help="Follow links that lead out of PATH, among the files of this host.",
)
@session_options
@json_option
def mount(
    source: str | None,
    folder: str | None,
    read_only: bool,
    reconnect: bool,
    encrypted: bool,
    follow_links: bool,
    as_json: bool,
    **place: Any,
) -> None:
    """Mount the folder PATH of guest NAME at DIR, an empty folder of yours; without arguments, list such mounts.

    \b
    vsock mount alpha:/srv/data ~/data
    vsock umount ~/data

    sshfs is the file system, and the guest's SSH server lets you in as for `vsock cp`. A relative PATH begins in the
    home of the user, and NAME: is that home. Only you can look into the mounted folder. Programs of set-user-ID and
    devices do nothing there, and links that lead out of it are not followed, without --follow-links.

    If the connection is lost, every access ends with an error (EIO), until `vsock umount`; with --reconnect the next
    access connects again.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    if source is None:
        if read_only or reconnect or encrypted or follow_links:
            raise click.UsageError("name NAME:PATH and DIR")
        _list(as_json=as_json)
        return
    if folder is None:
        raise click.UsageError("name NAME:PATH and DIR")
    if as_json:
        raise click.UsageError("--json is for the listing")
    from vsock.cli import sshfs
    from vsock.cli.orders import Place as Where
    from vsock.ssh.copying.trees import Place

    named = Place.parse(source)
    if named.guest is None:
        raise click.UsageError(f"{source!r} names no guest: write NAME:PATH")
    target = _mountable(folder)
    for line in sshfs.mount(
        Where(forward_agent=False, **place),
        named.guest,
        named.path,
        target,
        encrypted=encrypted,
        reconnect=reconnect,
        read_only=read_only,
        follow_links=follow_links,
    ):
        click.echo(f"vsock: {line}", err=True)


def _mountable(folder: str) -> str:
    """The path of a folder at which something can be mounted."""
    from vsock.ssh.mounts import mount_at

    if there := mount_at(folder):
        what = _source(there) if there.is_ours else f"a file system ({there.type})"
        raise click.ClickException(f"{folder}: {what} is mounted there already")
    path = Path(folder).resolve()
    if any(path.iterdir()):  # raises if it is missing, or no folder
        raise click.ClickException(f"{folder}: not empty; mount at an empty folder")
    if not os.access(path, os.W_OK):
        raise click.ClickException(f"{folder}: you may not write there; mount at a folder of yours")
    return str(path)


def _list(*, as_json: bool) -> None:
    from vsock.ssh.mounts import mounts

    found = [(one, one.pid()) for one in mounts()]
    if as_json:
        print_json([{**plain(one), "pid": pid} for one, pid in found])
        return
    print_table(
        "Mounts",
        ("source", "folder", "mode", ">pid"),
        [
            (
                _source(one),
                printable(one.folder),
                "ro" if one.read_only else "rw",
                str(pid or ""),
            )
            for one, pid in found
        ],
    )


def _source(one: "Mount") -> str:
    return printable(f"{one.guest}:{one.path}")


@click.command(short_help="End a mount of a guest's folder.")
@click.argument("folder", metavar="DIR")
@click.option("--lazy", is_flag=True, help="Though it is in use: wholly when it is not any more.")
@click.option("--force", is_flag=True, help="Though it is in use: what is open there fails.")
def umount(folder: str, lazy: bool, force: bool) -> None:
    """Take away what `vsock mount` has mounted at DIR.

    If programs use it, they are named, and it stays. With --lazy it is gone from DIR at once, and those programs go on
    until they close their files; with --force these fail, also while a program waits for a guest that does not answer.
    """
    from vsock.ssh.mounts import mount_at, unmount

    if lazy and force:
        raise click.UsageError("--lazy and --force exclude each other")
    there = mount_at(folder)
    if there is None or not there.is_ours:
        raise click.ClickException(
            f"{folder}: {'nothing' if there is None else 'no folder of a guest'} is mounted there;"
            " `vsock mount` lists mounts"
        )
    try:
        unmount(there, lazy=lazy, force=force)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise click.ClickException(f"{folder}: {_users(there)}") from None


def _users(there: "Mount") -> str:
    from vsock.ssh.mounts import users_of

    found = [
        process_text(pid, printable(name))
        for pid, name in islice(users_of(there.folder), _MOST_USERS)
    ]
    return f"in use by {', '.join(found) or 'a process of another user'}; end that, or give --lazy or --force"

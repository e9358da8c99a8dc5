"""`vsock share` and `vsock unshare`: folders of this host in guests."""

import os
import posixpath
from pathlib import Path
from typing import Any

import click

from vsock._system.text import printable
from vsock.cli.completion import guests as known_guests
from vsock.cli.options import json_option, session_options
from vsock.cli.output import print_json, print_table
from vsock.ssh.identity import state_dir
from vsock.ssh.shares import Share, end, shares

__all__ = ["share", "unshare"]


@click.command(short_help="Show a folder of this host in a guest, or list such folders.")
@click.argument("folder", required=False, metavar="[DIR")
@click.argument("target", required=False, metavar="NAME:PATH]", shell_complete=known_guests)
@click.option("--writable", is_flag=True, help="Let the guest change what is in DIR.")
@click.option(
    "--background", is_flag=True, help="Return when it is there; `vsock unshare` ends it."
)
@click.option(
    "--reconnect", is_flag=True, help="Share again, when the guest has gone and has come back."
)
@click.option("--all-users", is_flag=True, help="Let all users of the guest in, not only USER.")
@click.option("--encrypted", is_flag=True, help="Let ssh carry the data, too.")
@session_options
@json_option
def share(
    folder: str | None,
    target: str | None,
    writable: bool,
    background: bool,
    reconnect: bool,
    all_users: bool,
    encrypted: bool,
    as_json: bool,
    **place: Any,
) -> int:
    """Show the folder DIR of this host at PATH of guest NAME, until Ctrl-C; without arguments, list such folders.

    \b
    vsock share ~/src alpha:/srv/src
    vsock share --background --writable ~/out alpha:/srv/out
    vsock unshare alpha:/srv/out

    The guest needs sshfs, and its SSH server lets you in as for `vsock cp`. PATH is an empty folder, or is made; a
    relative one begins in the home of the user. The guest can only read, without --writable. It can reach nothing
    outside of DIR, also not by links, and nothing that is mounted below DIR.

    If the guest goes, or unmounts it, the command fails; with --reconnect it waits for the guest, and shares again.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    if folder is None:
        if writable or background or reconnect or all_users or encrypted:
            raise click.UsageError("name DIR and NAME:PATH")
        _list(as_json=as_json)
        return 0
    if target is None:
        raise click.UsageError("name DIR and NAME:PATH")
    if as_json:
        raise click.UsageError("--json is for the listing")
    from vsock.cli.background import in_background
    from vsock.cli.orders import Place
    from vsock.cli.shared import Sharing

    guest, path = _parse(target)
    sharing = Sharing(
        Place(forward_agent=False, **place),
        guest,
        path,
        _shareable(folder),
        writable=writable,
        encrypted=encrypted,
        all_users=all_users,
        reconnect=reconnect,
    )
    if not background:
        return sharing.run(None)
    code = in_background(sharing.run)
    if code < 0:
        raise click.ClickException(f"signal {-code} ended the process that shares {folder}")
    return code


def _parse(target: str) -> tuple[str, bytes]:
    """The guest and the path of NAME:PATH."""
    from vsock.ssh.copying.trees import Place

    named = Place.parse(target)
    if named.guest is None or not named.path:
        raise click.UsageError(f"{target!r}: write NAME:PATH, a folder of a guest")
    return named.guest, named.path


def _shareable(folder: str) -> str:
    """The absolute path of a folder of this host."""
    if not folder:
        raise click.UsageError("DIR is empty; `.` is the current directory")
    next(Path(folder).iterdir(), None)  # raises if it is no folder, or may not be read
    path = Path(folder).resolve()
    keys = state_dir().resolve()
    if _is_within(keys, path) or _is_within(path, keys):
        raise click.ClickException(
            f"{folder}: no guest may see {keys}, where the keys of all guests are: share another folder"
        )
    return str(path)


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder, whatever name that has there."""
    return folder.exists() and any(
        one.exists() and one.samefile(folder) for one in (path, *path.parents)
    )


def _list(*, as_json: bool) -> None:
    found = shares()
    if as_json:
        print_json(found)
        return
    print_table(
        "Shares",
        ("folder", "guest", "mode", "user", ">pid"),
        [
            (
                printable(one.folder),
                _place_of(one),
                "ro" if one.read_only else "rw",
                printable(one.user),
                str(one.pid),
            )
            for one in found
        ],
    )


def _place_of(one: Share) -> str:
    return printable(f"{one.guest}:{one.path}")


@click.command(short_help="End a share of a folder with a guest.")
@click.argument("target", metavar="NAME:PATH", shell_complete=known_guests)
def unshare(target: str) -> None:
    """Take away the folder that `vsock share` shows at PATH of guest NAME, and return when it is gone.

    PATH is as it was given, or as `vsock share` lists it. What programs of the guest have open there fails.
    """
    guest, path = _parse(target)
    there = posixpath.normpath(os.fsdecode(path))
    found = [
        one
        for one in shares()
        if one.guest == guest and there in (one.path, posixpath.normpath(one.asked))
    ]
    if not found:
        raise click.ClickException(f"{target}: nothing is shared there; `vsock share` lists shares")
    for one in found:
        end(one)

"""`vsock cp`: files and trees between the host and guests, by SSH and SFTP."""

from typing import TYPE_CHECKING, Any

import click

from vsock.cli.options import json_option, session_options
from vsock.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vsock.ssh.copying import Place

__all__ = ["cp"]


@click.command(short_help="Copy files and folders to guests, from them, and between them.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("destination", metavar="DESTINATION")
@click.option("--resume", is_flag=True, help="Go on with what a broken copy has left.")
@click.option("--no-verify", is_flag=True, help="Do not compare what was written.")
@click.option("--encrypted", is_flag=True, help="Let ssh carry the data, too.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@session_options
@json_option
def cp(
    sources: tuple[str, ...],
    destination: str,
    resume: bool,
    no_verify: bool,
    encrypted: bool,
    quiet: bool,
    as_json: bool,
    **place: Any,
) -> int:
    """Copy each SOURCE to DESTINATION, by SSH: NAME:PATH in a guest, a local path, or `-`.

    \b
    vsock cp report.txt alpha:/tmp/
    vsock cp alpha:/var/log ./logs
    vsock cp alpha:/srv/data beta:/srv/
    vsock cp alpha:/etc/os-release -

    A DESTINATION that is a folder gets the sources; else it is the new name of the only one. Folders are copied
    with all in them. Modes, times and links are kept. `SOURCE/.` stands for what is in a folder. A local path with
    a colon is written ./a:b, and NAME: alone is the home of the user.

    Data passes over a plain vsock connection, which the guest opens when it is told to over ssh. If it cannot, or
    with --encrypted, ssh carries the data.

    A file has its name only when it is whole and was compared. What fails does not stop the others.

    Exit code: 0, or 1 if something was not copied.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    from vsock.cli import copies
    from vsock.cli.orders import Place as Where
    from vsock.ssh.copying import Place

    froms, to = [Place.parse(one) for one in sources], Place.parse(destination)
    _check(froms, to, destination)
    where = Where(forward_agent=False, **place)
    result = copies.run(
        where,
        froms,
        to,
        resume=resume,
        verify=not no_verify,
        encrypted=encrypted,
        is_shown=not quiet and not as_json,
    )
    for line in (*result.notes, *result.failures):
        click.echo(f"vsock: {line}", err=True)
    if result.failed > len(result.failures):
        more = result.failed - len(result.failures)
        click.echo(f"vsock: {more} more were not copied", err=True)
    if as_json:
        print_json(result)
    return 1 if result.failed else 0


def _check(sources: "Sequence[Place]", destination: "Place", text: str) -> None:
    places = [*sources, destination]
    if not any(one.guest for one in places):
        raise click.UsageError(
            "no guest: write NAME:PATH as SOURCE or DESTINATION; for local files use cp"
        )
    if sum(one.is_stream for one in places) > 1 or (
        len(sources) > 1 and any(one.is_stream for one in places)
    ):
        raise click.UsageError("`-` is for one source and one destination")
    if destination.guest is None and not all(one.guest for one in sources):
        raise click.UsageError(
            f"{text}: a local SOURCE needs a guest as DESTINATION: write NAME:PATH"
        )

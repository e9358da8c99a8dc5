"""`vsock guest agent`: our SSH server for a guest that has none."""

import os
import sys
import tempfile
from pathlib import Path

import click

from vsock.errors import UsageError

__all__ = ["agent"]


@click.command(short_help="Give a guest without an SSH server one of ours.")
@click.option("--cpio", is_flag=True, help="Make a part of an initramfs.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it there, not to standard output.",
)
@click.option(
    "--into",
    "root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="ROOTFS",
    help="Put it into this folder, the root of a guest.",
)
@click.option("--init", "is_init", is_flag=True, help="Make it the guest's first process (/init).")
@click.option(
    "--module",
    "modules",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="A kernel module that it loads first, with --init. Repeatable, in their order.",
)
def agent(
    cpio: bool, output: Path | None, root: Path | None, is_init: bool, modules: tuple[Path, ...]
) -> None:
    """Give a guest that has no SSH server one of ours: vsock-sshd, a static program, with your key.

    \b
    vsock guest agent --cpio --init -o agent.cpio     a whole initramfs, with nothing else
    vsock guest agent --cpio >> initramfs.cpio        for an initramfs that starts it
    vsock guest agent --into rootfs                   for the root of an image

    The guest starts /usr/lib/vsock/vsock-sshd, by itself or with --init; then `vsock exec`, `vsock cp` and ssh work.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    if cpio == bool(root):
        raise click.UsageError("give --cpio or --into ROOTFS")
    if output and not cpio:
        raise click.UsageError("--output is for --cpio")
    if modules and not is_init:
        raise click.UsageError("--module is for --init")
    from vsock.ssh import guest_server
    from vsock.ssh.identity import Identity

    identity = Identity.of_user()
    try:
        files = guest_server.files_for_guest(identity, is_init=is_init, modules=modules)
        if root:
            guest_server.install(root, files)
            click.echo(f"{root}/{guest_server.PROGRAM} lets in {identity.public_file}")
            return
    except UsageError as error:
        raise click.ClickException(str(error)) from None
    _write(guest_server.cpio(files), output)
    if output:
        click.echo(f"{output} lets in {identity.public_file}")


def _write(archive: bytes, output: Path | None) -> None:
    """Write it for this user alone: the host key is in it."""
    if output is None:
        if sys.stdout.isatty():
            raise click.UsageError("an archive is nothing for a terminal: use -o FILE")
        sys.stdout.buffer.write(archive)
        return
    descriptor, partial = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(archive)
        Path(partial).replace(output)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise

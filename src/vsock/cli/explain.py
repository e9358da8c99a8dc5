"""`vsock explain`: may one connect to the other, and which rule decides.

A connection that the policy refuses fails as if no program listened; this command shows the reason.
"""

from pathlib import Path

import click

from vsock.cli.completion import parties
from vsock.cli.options import json_option, runtime_dir_option
from vsock.cli.output import print_json
from vsock.control.client import ControlClient

__all__ = ["explain"]


@click.command()
@click.argument("source", shell_complete=parties)
@click.argument("destination", shell_complete=parties)
@json_option
@runtime_dir_option
def explain(source: str, destination: str, as_json: bool, runtime_dir: Path | None) -> int:
    """Say whether SOURCE may connect to DESTINATION (guests by name or CID, or `host`), and why.

    Exit code: 0 if it may, 1 if not, 2 if no switch answers or it has no such guest.
    """
    verdict = ControlClient(runtime_dir).explain(source, destination)
    if as_json:
        print_json(verdict)
    else:
        click.echo(f"{'allowed' if verdict.is_allowed else 'refused'}: {verdict.reason}")
    return 0 if verdict.is_allowed else 1

"""`vsock explain`: may one talk to the other, and which rule says so.

A refusal by policy looks to the programs at both ends as if nobody listened: here one can ask.
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

    Exit code 0 when it may, 1 when not, 2 when the switch could not be asked or knows no such guest.
    """
    verdict = ControlClient(runtime_dir).explain(source, destination)
    if as_json:
        print_json(verdict)
    else:
        click.echo(f"{'allowed' if verdict.is_allowed else 'refused'}: {verdict.reason}")
    return 0 if verdict.is_allowed else 1

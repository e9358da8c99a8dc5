"""`vsock guest`: the guests of a running switch; `run`, `agent`, `host-key` and `setup` have modules of their own."""

from pathlib import Path
from typing import Any, Final

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.fields import field_options, given, names_of, whole_number
from vsock.cli.groups import Group
from vsock.cli.guest_agent import agent
from vsock.cli.guest_run import run
from vsock.cli.guest_ssh import host_key, setup
from vsock.cli.options import json_option, runtime_dir_option
from vsock.cli.output import bytes_text, print_json, print_table, process_text
from vsock.control.client import ControlClient
from vsock.control.model import GuestCid, GuestRecord, GuestSpec
from vsock.control.schema import SchemaError, about, fields_of, read, read_changes

__all__ = ["guest", "print_guests"]

_FIELDS: Final = fields_of(GuestSpec)
_ARGUMENTS: Final = ("name", "cid")
_ADDED: Final = {name: field for name, field in _FIELDS.items() if name not in _ARGUMENTS}
_CHANGED: Final = {name: field for name, field in _FIELDS.items() if not about(field).is_fixed}

_TITLES: Final = {"hybrid": "hybrid socket"}
"""The words for a field in a sentence, if they differ from its name."""


@click.group(cls=Group)
def guest() -> None:
    """Add, change, remove, list or run guests of a switch."""


for _command in (run, agent, host_key, setup):
    guest.add_command(_command)


@guest.command()
@click.argument("name")
@click.argument("cid", type=whole_number(GuestCid))
@field_options(_ADDED)
@json_option
@runtime_dir_option
def add(name: str, cid: int, as_json: bool, runtime_dir: Path | None, **fields: Any) -> None:
    """Add guest NAME with CID to a running switch."""
    try:
        spec = read(GuestSpec, {"name": name, "cid": cid, **given(_ADDED, fields)})
    except SchemaError as error:
        raise click.UsageError(str(error)) from None
    record = ControlClient(runtime_dir).add_guest(spec)
    if as_json:
        print_json(record)
    else:
        click.echo(f"guest {record.name} has CID {record.cid}; its VMM connects to {record.socket}")


@guest.command("set")
@click.argument("name", shell_complete=known_guests)
@field_options(_CHANGED, changing=True)
@json_option
@runtime_dir_option
def set_(name: str, as_json: bool, runtime_dir: Path | None, **fields: Any) -> None:
    """Change guest NAME (or CID), also while it runs."""
    changes = given(_CHANGED, fields)
    if not changes:
        *others, last = [
            it for name in _CHANGED for it in names_of(name, _CHANGED[name], changing=True)
        ]
        raise click.UsageError(f"nothing to change: give {', '.join(others)} or {last}")
    try:
        changes = read_changes(GuestSpec, changes)
    except SchemaError as error:
        raise click.UsageError(str(error)) from None
    record = ControlClient(runtime_dir).change_guest(name, **changes)
    if as_json:
        print_json(record)
        return
    text = f"guest {record.name} has CID {record.cid}"
    for name in (name for name in changes if name != "cid"):
        value = getattr(record, name)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        text += f", {_TITLES.get(name, name)} {shown or 'none'}"
    click.echo(text)


@guest.command(short_help="End all flows of guest NAME (or CID), and remove it.")
@click.argument("name", shell_complete=known_guests)
@json_option
@runtime_dir_option
def remove(name: str, as_json: bool, runtime_dir: Path | None) -> None:
    """End the attachment and all flows of guest NAME (or CID), and remove it.

    With --json it prints the guest as it was before.
    """
    client = ControlClient(runtime_dir)
    record = client.guest(name)
    client.remove_guest(record.name)
    if as_json:
        print_json(record)
    else:
        click.echo(f"guest {record.name} removed")


@guest.command()
@json_option
@runtime_dir_option
def ls(as_json: bool, runtime_dir: Path | None) -> None:
    """List the guests."""
    guests = ControlClient(runtime_dir).guests()
    if as_json:
        print_json(guests)
    else:
        print_guests(guests)


def _state_text(guest: GuestRecord) -> str:
    """How far a guest has come; the last step is what it says itself."""
    return "ready" if guest.ready else guest.state


def print_guests(guests: list[GuestRecord]) -> None:
    """Prints a table of guests."""
    print_table(
        "Guests",
        (
            *("name", ">cid", "state", ">flows", ">sent", ">received", ">errors"),
            *("pid/program", "groups", "socket", "description"),
        ),
        [
            (
                guest.name,
                str(guest.cid),
                _state_text(guest),
                str(guest.connections),
                bytes_text(guest.bytes_in),
                bytes_text(guest.bytes_out),
                str(guest.errors),
                process_text(guest.pid, guest.program),
                ",".join(guest.groups),
                str(guest.socket),
                guest.description,
            )
            for guest in guests
        ],
    )

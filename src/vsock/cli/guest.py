"""`vsock guest`: the guests of a running switch; `run` is in `vsock.cli.guest_run`."""

from pathlib import Path

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.groups import Group
from vsock.cli.guest_run import run
from vsock.cli.options import guest_cid, json_option, runtime_dir_option
from vsock.cli.output import bytes_text, print_json, print_table, process_text
from vsock.switch.client import Client
from vsock.switch.model import GuestSpec, faults
from vsock.switch.records import GuestRecord

__all__ = ["guest", "print_guests"]


@click.group(cls=Group)
def guest() -> None:
    """Add, change, remove and list guests of a running switch, or be one."""


guest.add_command(run)


@guest.command()
@click.argument("name")
@click.argument("cid", type=guest_cid)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="Guests that share a group may talk to each other. Repeatable.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path, resolve_path=True),
    metavar="PATH",
    help="Where its VMM connects (else guests/NAME.sock in the switch's directory).",
)
@click.option("--hybrid", is_flag=True, help="Make a hybrid socket too (guests/NAME.vsock).")
@click.option("--memory-slots", is_flag=True, help="For more than 8 memory regions (hot-plug).")
@click.option(
    "--host-alias",
    "host_aliases",
    multiple=True,
    type=guest_cid,
    metavar="CID",
    help="Another CID by which it reaches the host, as 3 in Nitro enclaves. Repeatable.",
)
@json_option
@runtime_dir_option
def add(
    name: str,
    cid: int,
    groups: tuple[str, ...],
    socket: Path | None,
    hybrid: bool,
    memory_slots: bool,
    host_aliases: tuple[int, ...],
    as_json: bool,
    runtime_dir: Path | None,
) -> None:
    """Let guest NAME in, with its CID, while others run."""
    spec = GuestSpec(
        name=name,
        cid=cid,
        groups=groups,
        socket=socket,
        memory_slots=memory_slots,
        host_aliases=host_aliases,
    )
    wrong = faults(spec)
    if wrong:
        raise click.UsageError("; ".join(fault.reason for fault in wrong))
    record = Client(runtime_dir).add_guest(spec, hybrid=hybrid)
    if as_json:
        print_json(record)
    else:
        click.echo(f"guest {record.name} has CID {record.cid}; its VMM connects to {record.socket}")


@guest.command("set")
@click.argument("name", shell_complete=known_guests)
@click.option(
    "--cid",
    type=guest_cid,
    metavar="CID",
    help="The new CID, as when it migrates. Connections of the guest end, its listeners go on.",
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="The groups from now on, in place of those it has. Its connections go on. Repeatable.",
)
@click.option("--no-groups", is_flag=True, help="No groups from now on.")
@click.option(
    "--hybrid/--no-hybrid",
    default=None,
    help="A hybrid socket (guests/NAME.vsock), or none, from now on.",
)
@json_option
@runtime_dir_option
def set_(
    name: str,
    cid: int | None,
    groups: tuple[str, ...],
    no_groups: bool,
    hybrid: bool | None,
    as_json: bool,
    runtime_dir: Path | None,
) -> None:
    """Change guest NAME (or CID) while it runs."""
    if groups and no_groups:
        raise click.UsageError("--group and --no-groups exclude each other")
    if cid is None and hybrid is None and not groups and not no_groups:
        raise click.UsageError("nothing to change: give --cid, --group, --no-groups or --hybrid")
    wanted = groups if groups or no_groups else None
    record = Client(runtime_dir).change_guest(name, cid=cid, groups=wanted, hybrid=hybrid)
    if as_json:
        print_json(record)
    else:
        text = f"guest {record.name} has CID {record.cid}"
        if wanted is not None:
            text += f", groups {', '.join(record.groups) or 'none'}"
        if hybrid is not None:
            text += f", hybrid socket {record.hybrid or 'none'}"
        click.echo(text)


@guest.command(short_help="End all flows of guest NAME (or CID), and forget it.")
@click.argument("name", shell_complete=known_guests)
@json_option
@runtime_dir_option
def remove(name: str, as_json: bool, runtime_dir: Path | None) -> None:
    """End the attachment and all flows of guest NAME (or CID), and forget it.

    With --json: the guest as it was just before.
    """
    client = Client(runtime_dir)
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
    guests = Client(runtime_dir).guests()
    if as_json:
        print_json(guests)
    else:
        print_guests(guests)


def print_guests(guests: list[GuestRecord]) -> None:
    """Prints a table of guests."""
    print_table(
        "Guests",
        (
            *("name", ">cid", "state", ">flows", ">sent", ">received", ">errors"),
            *("pid/program", "groups", "socket"),
        ),
        [
            (
                guest.name,
                str(guest.cid),
                guest.state,
                str(guest.connections),
                bytes_text(guest.bytes_in),
                bytes_text(guest.bytes_out),
                str(guest.errors),
                process_text(guest.pid, guest.program),
                ",".join(guest.groups),
                guest.socket,
            )
            for guest in guests
        ],
    )

"""`vsock status`, `vsock clock` and `vsock journal`: a guest as it says of itself, over SSH."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import json_option, runtime_dir_option, transport_of
from vsock.cli.orders import Order, Place, carry_out
from vsock.cli.output import bytes_text, print_json, print_table, seconds_text

if TYPE_CHECKING:
    from vsock.ssh.guest_state import Clock, GuestState

__all__ = ["clock", "journal", "status"]

_F = TypeVar("_F", bound=Callable[..., Any])

_user_option: Callable[[_F], _F] = click.option(
    "-u", "--user", default="root", show_default=True, help="A user of the guest."
)


@click.command(short_help="Show how guests are: boot, load, memory, clock.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=known_guests)
@_user_option
@json_option
@runtime_dir_option
def status(names: tuple[str, ...], user: str, as_json: bool, runtime_dir: Path | None) -> int:
    """Show what guests say of themselves: system and state, time since boot, load, memory, clock.

    They are asked over SSH, all at once. Exit code: 1 if one of them did not answer.
    """
    import asyncio

    from vsock.errors import VsockError

    async def ask(name: str) -> "GuestState | str":
        from vsock.ssh import guest_session
        from vsock.ssh.guest_state import state_of

        try:
            async with guest_session(
                name, user=user, transport=transport_of(runtime_dir, None)
            ) as session:
                return await state_of(session)
        except (VsockError, OSError) as error:
            return f"{name}: {getattr(error, 'strerror', None) or error}"

    async def ask_all() -> "list[GuestState | str]":
        return list(await asyncio.gather(*(ask(name) for name in names)))

    answers = asyncio.run(ask_all())
    states = [answer for answer in answers if not isinstance(answer, str)]
    if as_json:
        print_json(states)
    elif states:
        _print(states)
    for answer in answers:
        if isinstance(answer, str):
            click.echo(f"vsock: {answer}", err=True)
    return 0 if len(states) == len(answers) else 1


@click.command(short_help="Show or set a guest's clock.")
@click.argument("name", shell_complete=known_guests)
@click.option("--set", "change", is_flag=True, help="Set it to the host's time.")
@_user_option
@json_option
@runtime_dir_option
def clock(name: str, change: bool, user: str, as_json: bool, runtime_dir: Path | None) -> None:
    """Show how far the clock of guest NAME is ahead of the host's, or behind it.

    A guest's clock stands still while it is paused or the host sleeps. --set sets it, as root in the guest.
    """
    import asyncio

    from vsock.ssh import guest_session
    from vsock.ssh.guest_state import clock_of, set_clock

    async def ask() -> "Clock":
        async with guest_session(
            name, user=user, transport=transport_of(runtime_dir, None)
        ) as session:
            return await (set_clock if change else clock_of)(session)

    found = asyncio.run(ask())
    if as_json:
        print_json(found)
    else:
        click.echo(f"the clock of {name} is {_clock_text(found)}")


@click.command(
    short_help="Show a guest's journal.", context_settings={"ignore_unknown_options": True}
)
@click.argument("name", shell_complete=known_guests)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.option("--user", default="root", show_default=True, help="A user of the guest.")
@runtime_dir_option
def journal(name: str, options: tuple[str, ...], user: str, runtime_dir: Path | None) -> int:
    """Show the journal of guest NAME; OPTIONS are those of journalctl(1), such as -f or -u ssh.

    -f follows it until Ctrl-C.
    """
    command = ("journalctl", "--no-pager", *options)
    order = Order(command, reads=False)
    place = Place(user, 22, 60.0, False, None, runtime_dir)
    return carry_out(place, name, order)


def _print(states: "Sequence[GuestState]") -> None:
    print_table(
        "Guests",
        ("name", "state", ">up", ">load", ">memory", ">free", "clock", "kernel", "system"),
        [
            (
                one.name,
                one.state or "?",
                "?" if one.uptime is None else seconds_text(one.uptime),
                "?" if one.load is None else f"{one.load:.2f}",
                "?" if one.memory is None else bytes_text(one.memory),
                "?" if one.available is None else bytes_text(one.available),
                _clock_text(one.clock),
                one.kernel or "?",
                one.system or "?",
            )
            for one in states
        ],
    )


def _clock_text(clock: "Clock") -> str:
    """How far it is off, as far as that is known."""
    if abs(clock.offset) <= clock.precision:
        return "right"
    return f"{seconds_text(abs(clock.offset))} {'ahead' if clock.offset > 0 else 'behind'}"

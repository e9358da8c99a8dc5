"""`vsock exec` and `vsock shell`: a command, or a shell, in a guest, over SSH.

The exit code is the command's, as ssh(1) has it: 255 is our own failure.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import Seconds, agent_option, json_option, session_options
from vsock.cli.orders import Order, Place, captured, carry_out, tell
from vsock.cli.output import print_json

__all__ = ["exec_", "shell"]


class _CommandBehindDashes(click.Command):
    """A command whose arguments end at `--`; what follows is not read, and becomes the parameter `command`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Cut the words at the first `--`."""
        position = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:position])
        ctx.params["command"] = tuple(args[position + 1 :])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the command in the usage line."""
        return [*super().collect_usage_pieces(ctx), "--", "COMMAND", "[ARGUMENT]..."]


@click.command(
    "exec", cls=_CommandBehindDashes, short_help="Run a command in a guest, or in several."
)
@click.argument("guests", nargs=-1, required=True, metavar="GUEST...", shell_complete=known_guests)
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="A variable. Repeatable.")
@click.option("-w", "--workdir", metavar="DIR", help="The directory in the guest.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--timeout", type=Seconds(), help="End it after so many seconds (exit code 124).")
@click.option(
    "--max-output",
    type=click.IntRange(0),
    metavar="BYTES",
    help="End it when it has written so much.",
)
@click.option(
    "--detach", is_flag=True, help="Start it as a job, which goes on by itself; see `vsock jobs`."
)
@click.option(
    "--reconnect",
    is_flag=True,
    help="Run it as a job, and go on when GUEST has gone and has come back.",
)
@click.option("--name", metavar="JOB", help="With --detach or --reconnect: the job's name.")
@agent_option
@session_options
@json_option
def exec_(
    guests: tuple[str, ...],
    command: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str | None,
    tty: bool,
    timeout: float | None,
    max_output: int | None,
    detach: bool,
    reconnect: bool,
    name: str | None,
    as_json: bool,
    **place: Any,
) -> int:
    """Run COMMAND in GUEST, with its standard input, output and error, over SSH.

    \b
    vsock exec alpha -- uname -r
    vsock exec alpha -- sh -c 'dmesg | tail'
    tar c . | vsock exec alpha -w /srv -- tar x
    vsock exec alpha beta -- uptime
    vsock exec alpha --detach --name build -- make
    vsock exec alpha --reconnect -- make

    The arguments reach the program as they are; no shell expands them. Signals go to it, and Ctrl-C too.
    With several guests it runs in all of them at once, without standard input; lines begin with the guest's name.
    With --reconnect it has no standard input either: it is a job, whose output goes on in the next session when one
    was lost. Ctrl-C ends it.

    Exit code: that of COMMAND, 128 + N when signal N ended it, 124 for --timeout, 255 if it could not be run.
    With several guests: the first that is not 0, in the order of the guests.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    if not command:
        raise click.UsageError(
            "no command: write it behind `--`, as in `vsock exec alpha -- uname -r`"
        )
    if tty and (as_json or len(guests) > 1):
        raise click.UsageError("a terminal (-t) is for one guest, and not for --json")
    if tty and (sys.stdin is None or not sys.stdin.isatty()):
        raise click.UsageError("-t needs a terminal as standard input")
    order = Order(command, _variables(env), workdir, tty, timeout, max_output)
    where = Place(**place)
    if detach or reconnect:
        if detach and reconnect:
            raise click.UsageError("--detach and --reconnect exclude each other")
        return _as_job(where, guests, order, name, detach=detach, as_json=as_json)
    if name is not None:
        raise click.UsageError("--name is for --detach and --reconnect")
    if len(guests) == 1 and not as_json:
        return carry_out(where, guests[0], order)
    if as_json:
        results = captured(where, guests, order)
        print_json(results)
    else:
        from vsock.cli import remote

        results = remote.run(remote.in_all(where, guests, order, show=True))
        for one in results:
            tell(one)
    return next((one.exit_code for one in results if one.exit_code), 0)


def _as_job(
    where: Place,
    guests: Sequence[str],
    order: Order,
    name: str | None,
    *,
    detach: bool,
    as_json: bool,
) -> int:
    """Start it as a job, and follow it unless it is to be left alone."""
    from vsock.cli import jobs

    option = "--detach" if detach else "--reconnect"
    if len(guests) > 1 or order.is_tty or order.timeout or order.most is not None or as_json:
        raise click.UsageError(
            f"{option} is for one guest, without -t, --timeout, --max-output and --json"
        )
    if detach:
        jobs.detach(where, guests[0], order, name)
        return 0
    if where.forward_agent:
        raise click.UsageError("-A is not for --reconnect: the agent ends with the session")
    return jobs.execute(where, guests[0], order, name)


@click.command(short_help="Open a shell in a guest.")
@click.argument("guest", shell_complete=known_guests)
@agent_option
@session_options
def shell(guest: str, **place: Any) -> int:
    """Open the shell of a user of GUEST on this terminal, over SSH.

    If standard input is no terminal, the shell reads its commands from it. Exit code: as of `vsock exec`.
    """
    is_tty = sys.stdin is not None and sys.stdin.isatty()
    return carry_out(Place(**place), guest, Order((), is_tty=is_tty))


def _variables(words: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE; NAME alone has the value that it has here."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            if name not in os.environ:
                raise click.UsageError(f"--env {word}: write NAME=VALUE; {name} is not set here")
            value = os.environ[name]
        if not (name.isidentifier() and name.isascii()):
            raise click.UsageError(f"--env: {name!r} is no name of a variable")
        found[name] = value
    return found

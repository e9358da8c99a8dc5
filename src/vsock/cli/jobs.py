"""`vsock jobs`, `attach` and `wait-job`: commands in a guest that go on by themselves; how `vsock exec` starts them."""

from dataclasses import replace
from typing import Any

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import Seconds, json_option, session_options
from vsock.cli.orders import (
    TIMED_OUT,
    Failure,
    Order,
    Place,
    Result,
    captured,
    carry_out,
    reason_of,
)
from vsock.cli.output import print_json, print_table, seconds_text
from vsock.ssh import jobs as in_guest

__all__ = ["attach", "detach", "execute", "jobs", "wait_job"]


def detach(where: Place, guest: str, order: Order, name: str | None) -> None:
    """Start the order's command as a job, and print its name.

    Raises:
        Failure: it did not start.
    """
    job = _name_of(name)
    start = in_guest.start(job, order.command, order.env)
    # Its variables are the job's, not the script's that starts it.
    result = _result(where, guest, replace(order, command=start, env={}))
    if result.exit_code:
        raise Failure(f"{guest}: {reason_of(result)}")
    click.echo(job)


def execute(where: Place, guest: str, order: Order, name: str | None) -> int:
    """Run the order's command as a job that is followed over as many sessions as it takes; its exit code.

    Raises:
        Failure: it did not start, or not run to its end.
        BrokenPipeError: who reads our output is gone.
    """
    from vsock.cli import following, remote

    return remote.run(following.execute(where, guest, _name_of(name), order))


def _name_of(name: str | None) -> str:
    """The name that a job is given, or one that no other job has."""
    import secrets

    return in_guest.checked_id(secrets.token_hex(4) if name is None else name)


@click.command(short_help="List the jobs of a guest, end or remove one.")
@click.argument("guest", shell_complete=known_guests)
@click.option("--kill", metavar="JOB", help="End it: SIGTERM, and SIGKILL 5 s later.")
@click.option("--remove", metavar="JOB", help="Remove what is kept of one that has ended.")
@json_option
@session_options
def jobs(guest: str, kill: str | None, remove: str | None, as_json: bool, **place: Any) -> None:
    """List the commands that `vsock exec --detach` has started in GUEST for its user (-u).

    The guest keeps their output until they are removed. A job is `lost` if the guest was restarted meanwhile.
    """
    if kill is not None and remove is not None:
        raise click.UsageError("--kill and --remove exclude each other")
    where = Place(forward_agent=False, **place)
    if kill is not None:
        _asked(where, guest, Order(in_guest.kill(in_guest.checked_id(kill)), reads=False))
        return
    if remove is not None:
        _asked(where, guest, Order(in_guest.remove(in_guest.checked_id(remove)), reads=False))
        return
    found = in_guest.listed(_asked(where, guest, Order(in_guest.listing(), reads=False)).stdout)
    if as_json:
        print_json(found)
        return
    print_table(
        "Jobs",
        ("job", "state", ">code", ">time", "command"),
        [
            (
                one.id,
                one.state,
                "" if one.exit_code is None else str(one.exit_code),
                "?" if one.seconds is None else seconds_text(one.seconds),
                one.command,
            )
            for one in found
        ],
    )


@click.command(short_help="Show what a job of a guest writes, until it ends.")
@click.argument("guest", shell_complete=known_guests)
@click.argument("job")
@click.option(
    "--reconnect",
    is_flag=True,
    help="Go on where the output was, when GUEST has gone and has come back.",
)
@session_options
def attach(guest: str, job: str, reconnect: bool, **place: Any) -> int:
    """Show all that JOB of GUEST has written, and what it writes, until it ends.

    Ctrl-C ends this command, not the job. Exit code: the job's; 1 if there is no such job, or it is lost.
    """
    where = Place(forward_agent=False, **place)
    in_guest.checked_id(job)
    if reconnect:
        from vsock.cli import following, remote

        return remote.run(following.attach(where, guest, job))
    return carry_out(where, guest, Order(in_guest.follow(job), reads=False))


@click.command("wait-job", short_help="Wait until a job of a guest ends.")
@click.argument("guest", shell_complete=known_guests)
@click.argument("job")
@click.option("--timeout", type=Seconds(), help="Wait no longer than so many seconds.")
@session_options
def wait_job(guest: str, job: str, timeout: float | None, **place: Any) -> int:
    """Wait until JOB of GUEST ends.

    Exit code: the job's; 124 if it still runs after --timeout; 1 if there is no such job, or it is lost.
    """
    order = Order(in_guest.wait(in_guest.checked_id(job)), timeout=timeout, reads=False)
    (result,) = captured(Place(forward_agent=False, **place), [guest], order)
    if result.exit_code == TIMED_OUT and result.error:
        click.echo(f"vsock: {guest}: job {job} still runs", err=True)
    elif result.error or result.stderr:
        click.echo(f"vsock: {guest}: {result.error or reason_of(result)}", err=True)
    return result.exit_code


def _result(where: Place, guest: str, order: Order) -> Result:
    """Run it; Failure if it did not run to its end."""
    (result,) = captured(where, [guest], replace(order, most=in_guest.MOST_LISTED))
    if result.error:
        raise Failure(f"{guest}: {result.error}")
    return result


def _asked(where: Place, guest: str, order: Order) -> Result:
    """Run it; what it says on standard error, if it fails, is our error."""
    result = _result(where, guest, order)
    if result.exit_code:
        raise click.ClickException(f"{guest}: {reason_of(result)}")
    return result

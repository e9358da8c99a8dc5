"""`vsock forward`: connections from one end to another, TCP, Unix or vsock; or over a guest's SSH server, as ssh(1) has them."""

import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import Seconds, session_options, transport_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from vsock.forwarding import Refused
    from vsock.ssh.forwards import Forward

__all__ = ["forward"]


@click.command(short_help="Forward connections: TCP, Unix and vsock, to each other.")
@click.argument(
    "ends", nargs=-1, required=True, metavar="FROM TO | GUEST", shell_complete=known_guests
)
@click.option(
    "-L",
    "to_guest",
    multiple=True,
    metavar="[BIND:]PORT:HOST:PORT",
    help="Over SSH: listen here, connect from GUEST. Repeatable.",
)
@click.option(
    "-R",
    "to_host",
    multiple=True,
    metavar="[BIND:]PORT:HOST:PORT",
    help="Over SSH: listen in GUEST, connect from here. Repeatable.",
)
@click.option(
    "-D",
    "socks",
    multiple=True,
    metavar="[BIND:]PORT",
    help="Over SSH: a SOCKS proxy here that connects from GUEST. Repeatable.",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Seconds in which TO must answer.",
)
@click.option(
    "--reconnect",
    is_flag=True,
    help="Over SSH: forward again, when GUEST has gone and has come back.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not report connections that fail.")
@session_options
def forward(
    ends: tuple[str, ...],
    to_guest: tuple[str, ...],
    to_host: tuple[str, ...],
    socks: tuple[str, ...],
    timeout: float,
    reconnect: bool,
    quiet: bool,
    **place: Any,
) -> None:
    """Listen at FROM, and connect each connection to TO, until interrupted.

    \b
    vsock forward 8080 alpha:80                    a guest's web server at http://127.0.0.1:8080
    vsock forward unix:docker.sock alpha:2375      a guest's Docker socket
    vsock forward host:5432 tcp:db.example:5432    a database for guests without a network
    vsock forward host:53 beta:53                  a port of one guest for others

    An end is an ADDRESS of vsock, unix:PATH, tcp:HOST:PORT, or a PORT of 127.0.0.1. The end of one direction
    does not end the other.

    With -L, -R or -D the SSH server of GUEST forwards, for what does not listen on vsock in the guest:

    \b
    vsock forward -L 8080:localhost:80 alpha       a web server of the guest that listens on TCP alone
    vsock forward -R 3128:localhost:3128 alpha     a port of this host at a port of the guest
    vsock forward -D 1080 alpha                    what the guest reaches, for programs here

    If GUEST goes, the command fails; with --reconnect it waits for GUEST, and forwards again.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    import asyncio

    named = {"L": to_guest, "R": to_host, "D": socks}
    if any(named.values()):
        from vsock.ssh.forwards import parse_forward

        if len(ends) != 1:
            raise click.UsageError(f"-L, -R and -D are for one guest: {' '.join(ends)}")
        source = click.get_current_context().get_parameter_source("timeout")
        if source is not ParameterSource.DEFAULT:
            raise click.UsageError("--timeout is for FROM TO, not for -L, -R and -D")
        forwards = [parse_forward(kind, one) for kind in ("L", "R", "D") for one in named[kind]]
        work = _by_ssh(ends[0], forwards, _teller(quiet), place, reconnect=reconnect)
        asyncio.run(work)
        return
    if reconnect:
        raise click.UsageError("--reconnect is for -L, -R and -D: FROM TO connects anew each time")
    if len(ends) != 2:
        raise click.UsageError(f"write FROM and TO, or -L, -R or -D and a guest: {' '.join(ends)}")
    asyncio.run(_by_vsock(ends[0], ends[1], timeout, _teller(quiet), place))


def _teller(is_quiet: bool) -> "Callable[[str], None]":
    """What prints a connection that failed; not every one of many."""
    import time

    from vsock.control.allowance import Allowance

    allowance = Allowance()

    def tell(text: str) -> None:
        left_out = None if is_quiet else allowance.take(time.monotonic())
        with suppress(OSError):  # that nobody reads it does not end the connections
            if left_out:
                click.echo(f"vsock: {left_out} lines are left out here", err=True)
            if left_out is not None:
                click.echo(f"vsock: {text}", err=True)

    return tell


async def _by_vsock(
    source: str,
    target: str,
    seconds: float,
    tell: "Callable[[str], None]",
    place: dict[str, Any],
) -> None:
    import asyncio

    from vsock.forwarding import Forwarder, parse_end

    ends = parse_end(source), parse_end(target)
    where = transport_of(place["runtime_dir"], place["transport"])

    def tell_of(refused: "Refused") -> None:
        tell(f"from {refused.peer}: {refused.reason}")

    async with Forwarder(*ends, transport=where, seconds=seconds, tell=tell_of) as forwarder:
        click.echo(f"forwarding {forwarder.address} to {ends[1]}")
        sys.stdout.flush()
        await _until_signal(asyncio.ensure_future(forwarder.wait()))


async def _by_ssh(
    guest: str,
    forwards: "Sequence[Forward]",
    tell: "Callable[[str], None]",
    place: dict[str, Any],
    *,
    reconnect: bool,
) -> None:
    import asyncio
    import errno

    from vsock.cli.reconnecting import again
    from vsock.errors import SessionError

    bound = list(forwards)

    async def work() -> str:
        return await _in_a_session(guest, bound, tell, place, notices_silence=reconnect)

    async def until_it_is_over() -> None:
        reason = await work()
        while reconnect:
            _say(f"{reason}; forwards begin again when the guest is back")
            reason = await again(work, _say)
        raise SessionError(errno.ECONNRESET, reason)

    await _until_signal(asyncio.ensure_future(until_it_is_over()))


def _say(text: str) -> None:
    click.echo(f"vsock: {text}", err=True)


async def _in_a_session(
    guest: str,
    forwards: "list[Forward]",
    tell: "Callable[[str], None]",
    place: dict[str, Any],
    *,
    notices_silence: bool,
) -> str:
    """Forward until the session with the guest ends, which the answer says. A port that was free is kept in `forwards`."""
    from vsock.cli.orders import Place
    from vsock.cli.reconnecting import notice_silence
    from vsock.ssh.forwards import Port, open_forward, report_failures, text_of

    made: list[Path] = []
    try:
        async with Place(**place, forward_agent=False).session(guest) as session:
            if notices_silence:
                notice_silence(session)
            report_failures(session, tell)
            for number, one in enumerate(forwards):
                listener = await open_forward(session, one)
                listen = one.listen
                if isinstance(listen, Port):
                    listen = Port(listen.host, listener.get_port())
                    forwards[number] = replace(one, listen=listen)
                elif one.kind == "L":
                    made.append(Path(listen))
                click.echo(f"forwarding {_told(one, text_of(listen), guest)}")
            sys.stdout.flush()
            await session.connection.wait_closed()
            return f"the session with {guest} ended"
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def _told(forward: "Forward", listen: str, guest: str) -> str:
    from vsock.ssh.forwards import text_of

    target = text_of(forward.target) if forward.target else "what SOCKS names"
    if forward.kind == "R":
        return f"{listen} of {guest} to {target}"
    return f"{listen} to {target} of {guest}"


async def _until_signal(waiting: "asyncio.Future[None]") -> None:
    """Wait until this is over, or until a signal says so."""
    import asyncio

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, waiting.cancel)
    try:
        await waiting
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task and task.cancelling():
            raise  # Ctrl-C

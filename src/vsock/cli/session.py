"""`vsock session`: sessions with guests that stay open, so that `vsock exec` and `vsock shell` need no login."""

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.groups import Group
from vsock.cli.options import Seconds, agent_option, json_option, session_options
from vsock.cli.orders import Failure, Place
from vsock.cli.output import print_json, print_table, seconds_text

if TYPE_CHECKING:
    from vsock.ssh.master.messages import Key

__all__ = ["session"]

_OPEN: Final = b"open"


@click.group(cls=Group, short_help="Keep sessions with guests open: commands need no login.")
def session() -> None:
    """Keep a session with a guest open, list and close those that are.

    While one is open, `vsock exec` and `vsock shell` with the same options (-u, -p, -A) run in it, and begin at once.
    """


@session.command("open", short_help="Open a session and keep it, in the background.")
@click.argument("guest", shell_complete=known_guests)
@click.option(
    "--idle",
    type=Seconds(),
    default=600.0,
    show_default=True,
    help="Close it when nothing has run in it for so many seconds.",
)
@click.option("--foreground", is_flag=True, help="Stay, and close it at Ctrl-C.")
@agent_option
@session_options
def open_(guest: str, idle: float, foreground: bool, **place: Any) -> int:
    """Log in to GUEST, and keep the session until it is idle, closed, or the guest ends.

    Exit code: 0 when it is open, also if it was before; 255 if it could not be opened.
    """
    where = Place(**place)
    key = where.key(guest)
    from vsock.ssh.master.client import MasterClient

    if found := MasterClient.find(key):
        found.sock.close()
        if foreground:
            raise Failure(f"there is a session with {guest}: see `vsock session ls`")
        return 0
    return _keep(where, key, idle, lambda: None) if foreground else _in_background(where, key, idle)


def _in_background(where: Place, key: "Key", idle: float) -> int:
    """Keep the session in a child, which leaves this terminal when the session is open."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        return _keep(where, key, idle, partial(_leave, writer))
    os.close(writer)
    try:
        if os.read(reader, len(_OPEN)) == _OPEN:
            return 0
    except BaseException:
        os.kill(child, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # it has said why


def _leave(writer: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.write(writer, _OPEN)
    os.close(writer)


def _keep(where: Place, key: "Key", idle: float, when_open: Callable[[], object]) -> int:
    """Be the master of a session until it ends."""
    import asyncio

    from vsock.cli.remote import run
    from vsock.ssh.master.server import Master, listener

    async def keep() -> None:
        async with where.session(key.guest) as opened:
            with listener(key) as sock:
                master = Master(opened, key, sock, idle)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    asyncio.get_running_loop().add_signal_handler(number, master.close)
                when_open()
                await master.serve()

    run(keep())
    return 0


@session.command("ls", short_help="List sessions that are kept open.")
@json_option
def ls(as_json: bool) -> None:
    """List the sessions that this user keeps open."""
    from vsock.ssh.master.client import masters

    found = []
    for master in masters():
        with master:
            found.append(master.status())
    if as_json:
        print_json(found)
        return
    print_table(
        "Sessions",
        ("guest", "user", ">port", ">pid", ">running", ">age", ">closes in"),
        [
            (
                one.guest,
                one.user,
                str(one.port),
                str(one.pid),
                str(one.running),
                seconds_text(one.age),
                "" if one.closes_in is None else seconds_text(one.closes_in),
            )
            for one in found
        ],
    )


@session.command("close", short_help="Close sessions.")
@click.argument("guests", nargs=-1, metavar="[GUEST]...", shell_complete=known_guests)
@click.option("--all", "everything", is_flag=True, help="Close all of this user.")
def close(guests: tuple[str, ...], everything: bool) -> None:
    """Close the sessions with the guests, of whatever user and port; what runs in them is ended."""
    if everything == bool(guests):
        raise click.UsageError("name guests, or give --all")
    from vsock.ssh.master.client import masters

    missing = set(guests)
    for master in masters():
        with master:
            guest = master.status().guest
            if everything or guest in guests:
                missing.discard(guest)
                master.close_session()
    if missing:
        raise click.ClickException(f"no session with {', '.join(sorted(missing))}")

"""`vsock session`: sessions with guests that stay open, so that `vsock exec` and `vsock shell` need no login."""

import errno
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.groups import Group
from vsock.cli.options import Seconds, agent_option, json_option, session_options
from vsock.cli.orders import Failure, Place
from vsock.cli.output import print_json, print_table, seconds_text
from vsock.errors import SessionError

if TYPE_CHECKING:
    from vsock.ssh.master.client import MasterClient
    from vsock.ssh.master.messages import Key, Status

__all__ = ["session"]


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
        with found:
            if foreground:
                raise Failure(_there_is_one(guest))
        return 0
    if foreground:
        if not _keep(where, key, idle, lambda: None):
            raise Failure(_there_is_one(guest))
        return 0
    return _in_background(where, key, idle)


def _serves(key: "Key") -> bool:
    from vsock.ssh.master.client import MasterClient

    found = MasterClient.find(key)
    if found is None:
        return False
    with found:
        return True


def _there_is_one(guest: str) -> str:
    return f"there is a session with {guest} already: see `vsock session ls`"


def _in_background(where: Place, key: "Key", idle: float) -> int:
    """Keep the session in a child, which leaves this terminal when the session is open."""
    from vsock.cli.background import in_background

    def keep(leave: Callable[[], None]) -> int:
        if not _keep(where, key, idle, leave):
            if not _serves(key):
                raise Failure("the process that keeps the session does not answer: is it stopped?")
            leave()  # another process has opened it meanwhile
        return 0

    code = in_background(keep)
    if code < 0:
        raise Failure(f"signal {-code} ended the process that opened the session")
    return code


def _keep(where: Place, key: "Key", idle: float, when_open: Callable[[], object]) -> bool:
    """Be the master of a session until it ends; False if another process is.

    Raises:
        Failure: it was not opened.
    """
    import asyncio

    from vsock.cli.remote import run
    from vsock.ssh.master.server import Master, listener

    async def keep() -> bool:
        async with where.session(key.guest) as opened:
            with listener(key) as place:
                if place is None:
                    return False
                master = Master(opened, key, place, idle)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    asyncio.get_running_loop().add_signal_handler(number, master.close)
                when_open()
                await master.serve()
                return True

    return run(keep())


@session.command("ls", short_help="List sessions that are kept open.")
@json_option
def ls(as_json: bool) -> None:
    """List the sessions that this user keeps open."""
    found = [status for _, status in _masters()]
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
    missing = set(guests)
    for master, status in _masters():
        if everything or status.guest in guests:
            missing.discard(status.guest)
            master.close_session()
    if missing:
        raise click.ClickException(f"no session with {', '.join(sorted(missing))}")


def _masters() -> "Iterator[tuple[MasterClient, Status]]":
    """All masters of this user that answer; of one that does not a line is printed."""
    from vsock.ssh.master.client import MasterClient, masters

    for name in masters():
        try:
            master = MasterClient.connect(name)
            if master is None:
                continue
            with master:
                yield master, master.status()
        except SessionError as error:
            if error.errno != errno.ENOTCONN:  # else it has just ended
                click.echo(f"vsock: {error.strerror}", err=True)

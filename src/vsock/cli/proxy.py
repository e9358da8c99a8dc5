"""`vsock proxy`: an HTTP and SOCKS5 proxy for guests without a network."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import Seconds, runtime_dir_option, transport_of, transport_option
from vsock.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vsock.address import Target
    from vsock.forwarding import TcpEnd
    from vsock.proxy.log import Log
    from vsock.proxy.server import Settings
    from vsock.transports import Transport

__all__ = ["proxy"]


@click.command(short_help="Let guests without a network reach hosts on a list.")
@click.option(
    "--allow",
    "rules",
    multiple=True,
    required=True,
    metavar="RULE",
    help="Who may be reached: HOST, HOST:PORTS or 'HOST:PORTS METHODS'. Repeatable.",
)
@click.option(
    "--listen",
    "listeners",
    multiple=True,
    default=("host:3128",),
    show_default="host:3128",
    metavar="END",
    help="Where to listen: a port of the host on vsock, unix:PATH, tcp:HOST:PORT. Repeatable.",
)
@click.option(
    "--guest",
    "guests",
    multiple=True,
    metavar="NAME",
    shell_complete=known_guests,
    help="Only this guest of those that reach the port on vsock. Repeatable.",
)
@click.option(
    "--header-file",
    "header_files",
    multiple=True,
    metavar="HOST[:PORT]=FILE",
    help="Add the headers in FILE, which only you can read, to plain HTTP requests for HOST. Repeatable.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append the log to FILE, instead of printing it. SIGHUP opens it anew.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Connections of one guest at once; all guests together have 1024.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, 10000),
    default=50,
    show_default=True,
    help="Requests of one guest in a second; more wait.",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Seconds for a client to say what it wants, and for the host to answer.",
)
@click.option(
    "--idle-timeout",
    type=Seconds(),
    default=3600.0,
    show_default=True,
    help="Seconds for which a connection may carry no bytes.",
)
@transport_option
@runtime_dir_option
def proxy(
    rules: tuple[str, ...],
    listeners: tuple[str, ...],
    guests: tuple[str, ...],
    header_files: tuple[str, ...],
    log: Path | None,
    connections: int,
    rate: int,
    timeout: float,
    idle_timeout: float,
    transport: str | None,
    runtime_dir: Path | None,
) -> None:
    """Serve as an HTTP proxy (CONNECT, and plain http:// URLs) and a SOCKS5 proxy, until interrupted.

    \b
    vsock proxy --allow 'index.example.org' --allow '*.files.example.org:443'
    vsock proxy --allow '*.mirror.example:80 GET,HEAD' --guest builder
    vsock proxy --allow api.internal:80 --allow 10.0.0.7:80 --header-file api.internal=token.txt

    What no rule allows is refused. HOST is a name, *.NAME for all names below it, an address or a network; PORTS
    are as 443, 80,443, 8000-8999 or *, by default 80 and 443. METHODS allow only plain HTTP requests with one
    of them. Names are resolved here; an address that is not public needs a rule of its own.

    The log has a line of JSON for each request. The guide has a page on how programs in a guest reach the proxy.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    import asyncio

    from vsock.control.client import ControlClient
    from vsock.forwarding import parse_end
    from vsock.proxy.clients import Limits
    from vsock.proxy.credentials import read_header_file
    from vsock.proxy.guests import names_from
    from vsock.proxy.log import Log
    from vsock.proxy.rules import Rules, parse_rule
    from vsock.proxy.server import Settings
    from vsock.transports import SwitchTransport

    ends = [parse_end(text) for text in listeners]
    where = transport_of(runtime_dir, transport)
    client = ControlClient(where.directory) if isinstance(where, SwitchTransport) else None
    found = [read_header_file(text) for text in header_files]
    if len(dict(found)) < len(found):
        raise UsageError("--header-file: a host is named twice")
    settings = Settings(
        rules=Rules([parse_rule(text) for text in rules]),
        credentials=dict(found),
        guests=frozenset(guests) if guests else None,
        names=names_from(client) if client else dict,
        limits=Limits(connections=connections, rate=rate),
        seconds=timeout,
        idle_seconds=idle_timeout,
    )
    if guests and not client:
        raise UsageError("--guest: only a switch knows the names of guests")
    for guest in guests:
        assert client
        client.guest(guest)  # a misspelled name would let nobody in
    written = Log(log)
    try:
        asyncio.run(_serve(ends, settings, written, where))
    finally:
        written.close()


async def _serve(
    ends: "Sequence[TcpEnd | Target]", settings: "Settings", log: "Log", transport: "Transport"
) -> None:
    import asyncio

    from vsock.proxy.server import Proxy

    def reopen() -> None:
        try:
            log.reopen()
        except OSError as error:
            click.echo(f"vsock: the log goes on in the old file: {error}", err=True)

    async with Proxy(ends, settings, log.write, transport=transport) as running:
        for address in running.addresses:
            click.echo(f"proxy listens at {address}", err=True)
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(running.wait())
        loop.add_signal_handler(signal.SIGTERM, waiting.cancel)
        loop.add_signal_handler(signal.SIGHUP, reopen if log.has_file else waiting.cancel)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # a switch starts it blocked
        try:
            await waiting
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise  # Ctrl-C

"""`vsock forward`: connections from one end to another, TCP, Unix or vsock."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsock.cli.options import Seconds, runtime_dir_option, transport_of, transport_option

if TYPE_CHECKING:
    from vsock.forwarding import Refused

__all__ = ["forward"]


@click.command(short_help="Forward connections: TCP, Unix and vsock, to each other.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option(
    "--timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Seconds in which TO must answer.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not report connections that fail.")
@transport_option
@runtime_dir_option
def forward(
    source: str,
    target: str,
    timeout: float,
    quiet: bool,
    transport: str | None,
    runtime_dir: Path | None,
) -> None:
    """Listen at FROM, and connect each connection to TO, until interrupted.

    \b
    vsock forward 8080 alpha:80                    a guest's web server at http://127.0.0.1:8080
    vsock forward unix:docker.sock alpha:2375      a guest's Docker socket
    vsock forward host:5432 tcp:db.example:5432    a database for guests without a network
    vsock forward host:53 beta:53                  a port of one guest for others

    An end is an ADDRESS of vsock, unix:PATH, tcp:HOST:PORT, or a PORT of 127.0.0.1. The end of one direction
    does not end the other.
    """  # noqa: D301 - click reads the backspace: lines behind it are not filled
    import asyncio

    from vsock.forwarding import Forwarder, parse_end

    ends = parse_end(source), parse_end(target)
    where = transport_of(runtime_dir, transport)

    def tell(refused: "Refused") -> None:
        if not quiet:
            click.echo(f"vsock: from {refused.peer}: {refused.reason}", err=True)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        forwarder = Forwarder(*ends, transport=where, seconds=timeout, tell=tell)
        async with forwarder:
            click.echo(f"forwarding {forwarder.address} to {ends[1]}")
            sys.stdout.flush()
            waiting = asyncio.ensure_future(forwarder.wait())
            for number in (signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, waiting.cancel)
            try:
                await waiting
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task and task.cancelling():
                    raise  # Ctrl-C

    asyncio.run(run())

"""`vsock cat`: netcat for VSOCK."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import click

from vsock.cli.options import runtime_dir_option, transport_of, transport_option
from vsock.cli.pump import carry

__all__ = ["cat"]


@click.command()
@click.argument("address")
@click.option(
    "-l", "--listen", is_flag=True, help="Wait for a connection to ADDRESS, or to a PORT."
)
@click.option("-k", "--keep", is_flag=True, help="With -l and --exec: serve until interrupted.")
@click.option(
    "-e",
    "--exec",
    "command",
    metavar="COMMAND",
    help="Run this with the connection as its standard input and output.",
)
@click.option("--seqpacket", is_flag=True, help="Messages (SEQPACKET) instead of a stream.")
@click.option("-v", "--verbose", is_flag=True, help="Say to standard error who is connected.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to connect [2]."
)
@transport_option
@runtime_dir_option
def cat(
    address: str,
    listen: bool,
    keep: bool,
    command: str | None,
    seqpacket: bool,
    verbose: bool,
    timeout: float | None,
    transport: str | None,
    runtime_dir: Path | None,
) -> int:
    """Connect to ADDRESS and copy standard input to it, and it to standard output.

    The end of input closes the sending direction only: what comes back is still read to its end.
    """
    from vsock import sockets

    if keep and not (listen and command):
        raise click.UsageError("-k is for -l with --exec: standard input can be sent only once")
    if command is not None and not shlex.split(command):
        raise click.UsageError("--exec needs a command")
    kind = socket.SOCK_SEQPACKET if seqpacket else socket.SOCK_STREAM
    where = transport_of(runtime_dir, transport)
    if not listen:
        connection = sockets.create_connection(address, timeout, type=kind, transport=where)
        connection.settimeout(None)
        return _serve(connection, address, command, verbose)
    target = int(address) if address.isascii() and address.isdigit() else address
    with sockets.create_server(target, type=kind, transport=where) as listener:
        if verbose:
            click.echo(f"listening on {listener.getsockname()}", err=True)
        if command and keep:
            _serve_all(listener, command, verbose)
        connection, peer = listener.accept()
    return _serve(connection, str(peer), command, verbose)


def _serve(connection: socket.socket, peer: str, command: str | None, is_verbose: bool) -> int:
    with connection:
        if is_verbose:
            click.echo(f"connected to {peer}", err=True)
        if command:
            return 1 if _run(connection, peer, command).wait() else 0
        carry(connection, sys.stdin.fileno(), sys.stdout.fileno())
    return 0


def _serve_all(listener: socket.socket, command: str, is_verbose: bool) -> None:
    """A process for each connection, until we are interrupted."""
    running: list[subprocess.Popen[bytes]] = []
    while True:
        connection, peer = listener.accept()
        with connection:
            if is_verbose:
                click.echo(f"connected to {peer}", err=True)
            running.append(_run(connection, str(peer), command))
        running = [process for process in running if process.poll() is None]


def _run(connection: socket.socket, peer: str, command: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            shlex.split(command),
            stdin=connection.fileno(),
            stdout=connection.fileno(),
            env=os.environ | {"VSOCK_PEER": peer},
        )
    except OSError as error:
        raise click.ClickException(f"cannot run {command!r}: {error.strerror}") from error

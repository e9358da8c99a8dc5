"""`vsock cat`: netcat for VSOCK."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsock.cli.completion import addresses
from vsock.cli.options import Seconds, runtime_dir_option, transport_of, transport_option
from vsock.cli.pump import carry
from vsock.errors import VsockError

if TYPE_CHECKING:
    from vsock.transports import Transport

__all__ = ["cat"]


@click.command()
@click.argument("address", shell_complete=addresses)
@click.option(
    "-l",
    "--listen",
    is_flag=True,
    help="Listen on ADDRESS, or on a PORT, and accept one connection.",
)
@click.option(
    "-k", "--keep", is_flag=True, help="With -l and --exec: accept connections until interrupted."
)
@click.option(
    "--reconnect",
    is_flag=True,
    help="With -l: when the switch ends, wait until one runs again instead of exiting.",
)
@click.option(
    "-e",
    "--exec",
    "command",
    metavar="COMMAND",
    help="Run this program with the connection as its standard input and output. For a shell "
    "command write `sh -c '...'`.",
)
@click.option(
    "-t",
    "--tty",
    is_flag=True,
    help="For a shell at the other end: send every key there, also Ctrl-C; Ctrl-] ends.",
)
@click.option("--seqpacket", is_flag=True, help="Messages (SEQPACKET) instead of a stream.")
@click.option("-v", "--verbose", is_flag=True, help="Print each peer to standard error.")
@click.option("--timeout", type=Seconds(), help="Seconds to connect [2].")
@transport_option
@runtime_dir_option
def cat(
    address: str,
    listen: bool,
    keep: bool,
    reconnect: bool,
    command: str | None,
    tty: bool,
    seqpacket: bool,
    verbose: bool,
    timeout: float | None,
    transport: str | None,
    runtime_dir: Path | None,
) -> int:
    """Connect to ADDRESS; copy standard input to it, and the data it sends to standard output.

    The end of standard input ends only that direction: the other side's data is still read to its end.
    """
    from vsock.cli.connect import connect

    if keep and not (listen and command):
        raise click.UsageError("-k is for -l with --exec: standard input can be sent only once")
    if reconnect and not listen:
        raise click.UsageError("--reconnect is for -l: a client can connect again")
    if tty and (command or sys.stdin is None or not sys.stdin.isatty()):
        raise click.UsageError("--tty needs a terminal as standard input")
    program = None if command is None else _program(command)
    if program is None and sys.stdout is None:
        raise click.ClickException("standard output is closed; use >/dev/null to discard the data")
    kind = socket.SOCK_SEQPACKET if seqpacket else socket.SOCK_STREAM
    where = transport_of(runtime_dir, transport)
    if not listen:
        connection = connect(address, timeout, where, type=kind)
        connection.settimeout(None)
        return _serve(connection, address, program, tty, verbose)
    with _listen(address, kind, where, reconnect) as listener:
        if verbose:
            click.echo(f"listening on {listener.getsockname()}", err=True)
        if program and keep:
            _serve_all(listener, program, verbose)
        connection, peer = listener.accept()
    return _serve(connection, str(peer), program, tty, verbose)


def _program(command: str) -> list[str]:
    """Return the words of --exec; fails now, and not at the first connection, if they cannot be run."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--exec {command!r}: {error}") from None
    if not words:
        raise click.UsageError("--exec needs a command")
    if shutil.which(words[0]) is None:
        raise click.ClickException(f"cannot run {words[0]!r}: no such program")
    return words


def _listen(address: str, kind: int, transport: "Transport", reconnect: bool) -> socket.socket:
    from vsock import sockets

    target = f"any:{address}" if address.isascii() and address.isdigit() else address
    try:
        return sockets.create_server(target, type=kind, transport=transport, reconnect=reconnect)
    except OSError as error:
        if isinstance(error, VsockError) or error.filename or "bind " in str(error):
            raise
        raise click.ClickException(f"{address}: {error.strerror or error}") from None


def _serve(
    connection: socket.socket,
    peer: str,
    program: Sequence[str] | None,
    is_tty: bool,
    is_verbose: bool,
) -> int:
    with connection:
        if is_verbose:
            click.echo(f"connected to {peer}", err=True)
        if program:
            return 1 if _run(connection, peer, program).wait() else 0
        if is_tty:
            from vsock.cli.terminal import ESCAPE, raw

            with raw(0):
                carry(connection, 0, 1, escape=ESCAPE)
        else:
            carry(connection, 0, 1)
    return 0


def _serve_all(listener: socket.socket, program: Sequence[str], is_verbose: bool) -> None:
    """Run a process for each connection, until interrupted."""
    while True:
        connection, peer = listener.accept()
        with connection:
            if is_verbose:
                click.echo(f"connected to {peer}", err=True)
            process = _run(connection, str(peer), program)
        threading.Thread(target=process.wait, daemon=True).start()  # reaps it when it ends


def _run(connection: socket.socket, peer: str, program: Sequence[str]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            program,
            stdin=connection.fileno(),
            stdout=connection.fileno(),
            env=os.environ | {"VSOCK_PEER": peer},
        )
    except OSError as error:
        raise click.ClickException(f"cannot run {program[0]!r}: {error.strerror}") from error

"""`vsock ssh-proxy`: connects OpenSSH to a guest. It reads host names as systemd-ssh-proxy does.

With ``ProxyUseFdpass yes`` it passes the connected descriptor to ssh and exits before the first byte;
otherwise it stays and copies the data.
"""

import os
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import Seconds, runtime_dir_option, transport_of, transport_option

if TYPE_CHECKING:
    from vsock.transports.unix import UnixAddress

__all__ = ["ssh_proxy"]

_SEPARATORS: Final = "/%,"
"""Separators between the kind of an address and the rest, as in systemd."""

_DEFAULT_PORT: Final = "22"


@click.command()
@click.argument("host", shell_complete=known_guests)
@click.argument("port", default=_DEFAULT_PORT)
@click.option("--timeout", type=Seconds(), default=5.0, help="Seconds to connect [5].")
@transport_option
@runtime_dir_option
def ssh_proxy(
    host: str, port: str, timeout: float, transport: str | None, runtime_dir: Path | None
) -> int:
    """Connect to PORT [22] of HOST, for `ProxyCommand vsock ssh-proxy %h %p` in ssh_config.

    HOST is vsock/CID or vsock/NAME (a guest of the switch, or just NAME), vsock-mux/PATH (the socket
    of Firecracker or Cloud Hypervisor), or unix/PATH.
    """
    from vsock.cli.connect import connect

    if sys.stdout is None:
        raise click.ClickException(
            "standard output is closed; run this command as OpenSSH's ProxyCommand"
        )
    target = _target(host, port)
    where = transport_of(runtime_dir, transport)
    connection = connect(target, timeout, where)
    with connection:
        connection.settimeout(None)
        if _takes_descriptor(1):
            _pass(connection)
        else:
            from vsock.cli.pump import carry

            carry(connection, 0, 1)
    return 0


def _target(host: str, port: str) -> "str | UnixAddress":
    """The address, for create_connection, that HOST and PORT mean."""
    from vsock.transports.unix import UnixAddress

    if not (port.isascii() and port.isdigit()):
        raise click.UsageError(f"{port}: a port is a number")
    kind, rest = _split(host)
    if kind == "vsock":
        return f"{rest}:{port}"
    # As systemd does: a path is absolute unless it starts with a dot.
    path = rest if rest.startswith(("/", "./")) else f"/{rest}"
    return UnixAddress(path) if kind == "unix" else f"hvsock://{path}:{port}"


def _split(host: str) -> tuple[str, str]:
    """The kind of an address, and the rest; a name alone is a guest."""
    for kind in ("vsock-mux", "vsock", "unix"):
        if host.startswith(kind) and host[len(kind) : len(kind) + 1] in tuple(_SEPARATORS):
            rest = host[len(kind) + 1 :]
            if not rest:
                raise click.UsageError(f"{host}: nothing after {kind}")
            return kind, rest
    return "vsock", host


def _takes_descriptor(fd: int) -> bool:
    """Whether `fd` is a Unix socket: ssh opens one with ProxyUseFdpass, otherwise a pipe."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as asked:
        return asked.family == socket.AF_UNIX


def _pass(connection: socket.socket) -> None:
    with socket.socket(fileno=os.dup(1)) as ssh:
        socket.send_fds(ssh, [b"\0"], [connection.fileno()])

"""`vsock ssh-proxy`: connects OpenSSH to a guest. `vsock.ssh.hosts` has the forms of HOST.

With ``ProxyUseFdpass yes`` it passes the connected descriptor to ssh and exits before the first byte;
otherwise it stays and copies the data.
"""

import os
import socket
import stat
import sys
from pathlib import Path
from typing import Final

import click

from vsock.cli.completion import guests as known_guests
from vsock.cli.options import Seconds, runtime_dir_option, transport_of, transport_option

__all__ = ["ssh_proxy"]

_DEFAULT_PORT: Final = "22"
_LONGEST_PORT: Final = 10


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

    HOST is NAME or NAME.vsock (a guest of the switch), vsock/CID or vsock/NAME, vsock-mux/PATH (the socket
    of Firecracker or Cloud Hypervisor), or unix/PATH. `vsock ssh-config` prints the lines for ssh_config.
    """
    from vsock.cli.connect import connect
    from vsock.ssh.hosts import parse_host

    if sys.stdout is None:
        raise click.ClickException(
            "standard output is closed; run this command as OpenSSH's ProxyCommand"
        )
    if not (port.isascii() and port.isdigit() and len(port) <= _LONGEST_PORT):
        raise click.UsageError(f"{port}: a port is a number")
    target = parse_host(host).address(int(port))
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


def _takes_descriptor(fd: int) -> bool:
    """Whether `fd` is a Unix socket: ssh opens one with ProxyUseFdpass, otherwise a pipe."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as asked:
        return asked.family == socket.AF_UNIX


def _pass(connection: socket.socket) -> None:
    with socket.socket(fileno=os.dup(1)) as ssh:
        socket.send_fds(ssh, [b"\0"], [connection.fileno()])

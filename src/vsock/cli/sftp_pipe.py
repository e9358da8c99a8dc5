"""What sshfs starts in place of ssh: joins its standard input, a socket, with an SFTP server of the guest.

Bytes go by splice(2) between the two sockets, and through this process only where ssh carries them. The arguments are
those of ssh, and are not read; `sshfs.Order` is in the environment.
"""

import asyncio
import errno
import json
import os
import select
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from vsock.cli.sshfs import GO, Order

if TYPE_CHECKING:
    from vsock.ssh.session import GuestSession

__all__ = ["main"]

_LAST_SECONDS: Final = 2.0
"""How long what sshfs said before it left may be on its way."""

_MOST_UNANSWERED: Final = 3
"""So many questions without an answer end the session: the guest was stopped, or hangs."""


def main() -> int:
    """Carry out the order; returns the exit code."""
    order = Order.of_environment()
    with socket.socket(fileno=order.report) as report, socket.socket(fileno=os.dup(0)) as sshfs:
        if not (_is_first(report) or order.reconnect):
            return 1  # to sshfs a failed attempt to connect, and to programs EIO
        from vsock.errors import VsockError

        try:
            asyncio.run(_serve(order, sshfs, report))
        except (VsockError, OSError) as error:
            _tell(report, error=getattr(error, "strerror", None) or str(error))
            return 1
        except Exception as error:
            # sshfs gives it no standard error to tell this by.
            _tell(report, error=f"vsock.cli.sftp_pipe: {error!r}")
            raise
    return 0


def _is_first(report: socket.socket) -> bool:
    report.setblocking(False)
    try:
        return report.recv(len(GO)) == GO
    except OSError:
        return False


def _tell(report: socket.socket, **outcome: Any) -> None:
    with suppress(OSError):  # `vsock mount` has returned
        report.sendall(json.dumps(outcome).encode() + b"\n")


async def _serve(order: Order, sshfs: socket.socket, report: socket.socket) -> None:
    from pathlib import Path

    from vsock.cli.orders import Place
    from vsock.errors import SessionError

    sshfs.setblocking(False)
    fields = dict(order.place)
    if fields["runtime_dir"] is not None:
        fields["runtime_dir"] = Path(fields["runtime_dir"])
    async with Place(**fields).session(order.guest) as session:
        session.connection.set_keepalive(order.keepalive, _MOST_UNANSWERED)
        joined = asyncio.ensure_future(_join(order, session, sshfs, report))
        ended = asyncio.ensure_future(session.connection.wait_closed())
        left = asyncio.ensure_future(_left(sshfs))
        tasks = [joined, ended, left]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if left.done():
            await asyncio.wait([joined], timeout=_LAST_SECONDS)
        has_ended = ended.done() and not joined.done()
        for one in tasks:
            one.cancel()
        await asyncio.gather(ended, left, return_exceptions=True)
        with suppress(asyncio.CancelledError):
            await joined
    if has_ended:
        raise SessionError(errno.ECONNRESET, f"the session with {order.guest} ended")


async def _left(sshfs: socket.socket) -> None:
    """Wait until sshfs is gone, which may be before there is anything to join it with."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    poller = select.epoll()
    poller.register(sshfs, 0)  # a hangup is always told, and data alone is not
    loop.add_reader(poller.fileno(), gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(poller.fileno())
        poller.close()


async def _join(
    order: Order, session: "GuestSession", sshfs: socket.socket, report: socket.socket
) -> None:
    """Copy until both directions have ended."""
    from vsock.ssh.data_connection import DataConnectionError
    from vsock.ssh.sftp_server import (
        answering,
        join_over_ssh,
        notes,
        plain_server,
        ssh_server,
    )

    told: list[str] = []
    if not order.encrypted:
        try:
            data = await plain_server(session)
        except DataConnectionError as error:
            told += notes(order.guest, refused=error.refused, is_late=error.is_late)
        else:
            told += notes(order.guest, refused=data.refused)
            _tell(report, notes=told)
            from vsock.forwarding.splicing import Carried, join

            try:
                with suppress(OSError):  # sshfs has lost its connection then, and says so
                    await join(sshfs, data.detach(), Carried())
            finally:
                data.abort()
            return
    async with answering(session):
        streams = await ssh_server(session)
    _tell(report, notes=told)
    with suppress(OSError):
        await join_over_ssh(sshfs, *streams)


if __name__ == "__main__":
    sys.exit(main())

"""Carries out `vsock share`: shares a folder, again if that is wanted, and ends at a signal."""

import asyncio
import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from vsock._system.text import printable
from vsock.cli.reconnecting import again, notice_silence
from vsock.ssh.shares import Share, recorded

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsock.cli.orders import Place
    from vsock.ssh.sharing import Shared

__all__ = ["Sharing"]


class Sharing:
    """A call of `vsock share`: one share after the other, and the signals that end it."""

    def __init__(
        self,
        where: "Place",
        guest: str,
        path: bytes,
        folder: str,
        *,
        writable: bool,
        encrypted: bool,
        all_users: bool,
        reconnect: bool,
    ) -> None:
        self._where = where
        self._guest = guest
        self._path = path
        self._folder = folder
        self._writable = writable
        self._encrypted = encrypted
        self._all_users = all_users
        self._reconnect = reconnect
        self._leave: Callable[[], None] | None = None
        self._recorded = ExitStack()
        self._is_shared = False
        self._ended_by: int | None = None
        self._is_broken_off = False

    def run(self, leave: "Callable[[], None] | None") -> int:
        """Share until a signal ends it; returns 0. With `leave`, this is a process in the background."""
        self._leave = leave
        with self._recorded:
            asyncio.run(self._until_a_signal())
        return 0

    async def _until_a_signal(self) -> None:
        work = asyncio.ensure_future(self._run())

        def end(number: int) -> None:
            # A second signal breaks off the end, which waits for the guest.
            self._is_broken_off = self._ended_by is not None
            self._ended_by = self._ended_by or number
            work.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, end, number)
        try:
            await work
        except asyncio.CancelledError:
            if not self._is_shared:
                if self._ended_by == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise click.ClickException("interrupted; nothing is shared") from None
            if self._is_broken_off:
                raise click.ClickException(
                    f"{self._target}: interrupted again; it may still be mounted in the guest"
                ) from None

    async def _run(self) -> None:
        reason = await self._share()
        while self._reconnect:
            self._say(f"{self._guest}: {reason}; it is shared again when the guest is back")
            reason = await again(self._share, self._say)
        raise click.ClickException(f"{self._target}: not shared any more: {reason}")

    async def _share(self) -> str:
        """Share, and return why that is over."""
        async with self._where.session(self._guest) as session:
            from vsock.ssh.sharing import shared

            notice_silence(session)
            async with shared(
                session,
                self._folder,
                self._path,
                writable=self._writable,
                encrypted=self._encrypted,
                all_users=self._all_users,
            ) as there:
                self._tell(there)
                return await there.over()

    def _tell(self, there: "Shared") -> None:
        """It is shared, maybe for the first time."""
        for line in there.notes:
            self._say(line)
        if not self._is_shared:
            self._is_shared = True
            self._recorded.enter_context(recorded(self._record(there.path)))
        if self._leave:
            leave, self._leave = self._leave, None
            leave()
        else:
            how = "writable" if self._writable else "read-only"
            self._say(
                f"{printable(self._folder)} is at {self._guest}:{printable(there.path)} ({how})"
            )

    def _record(self, path: str) -> Share:
        return Share(
            guest=self._guest,
            path=path,
            asked=os.fsdecode(self._path),
            folder=self._folder,
            read_only=not self._writable,
            user=self._where.user,
            pid=os.getpid(),
        )

    @property
    def _target(self) -> str:
        return printable(f"{self._guest}:{os.fsdecode(self._path)}")

    def _say(self, line: str) -> None:
        click.echo(f"vsock: {line}", err=True)

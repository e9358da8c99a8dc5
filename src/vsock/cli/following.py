"""Follows a job for `vsock attach --reconnect` and `vsock exec --reconnect`, over as many sessions as that takes.

A command cannot be run twice: `vsock exec --reconnect` starts it as a job, which goes on without the session, and ends
and removes it. Of what the job writes, each byte is shown once.
"""

import asyncio
import errno
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vsock._system.descriptors import PIECE, write_all
from vsock.cli.orders import Failure, Order, Place, Result, reason_of
from vsock.cli.reconnecting import again, notice_silence
from vsock.cli.remote import captured, start
from vsock.errors import SessionError
from vsock.ssh import jobs as in_guest
from vsock.ssh.attached import in_thread
from vsock.ssh.command_line import SIGNALS
from vsock.ssh.session import translated

if TYPE_CHECKING:
    from vsock.ssh.session import GuestSession

__all__ = ["attach", "execute"]


async def attach(where: Place, guest: str, job: str) -> int:
    """Show what a job of a guest has written, and writes, until it ends; return its exit code.

    Raises:
        click.ClickException: there is no such job, or it has not said how it ended.
        VsockError: there was no session to begin with.
        OSError: its output cannot be written.
    """
    return await _unwrapped(_Following(where, guest, job, None))


async def execute(where: Place, guest: str, job: str, order: Order) -> int:
    """Run the order as a job, show what it writes, and remove it when it has ended; return its exit code.

    SIGINT, SIGTERM, SIGHUP and SIGQUIT end the job; a second signal gives it up.

    Raises:
        Failure: it did not start, it has not said how it ended, or a signal gave it up.
        VsockError, OSError: as `attach`.
    """
    following = _Following(where, guest, job, order)
    work = asyncio.ensure_future(_unwrapped(following))

    def interrupt() -> None:
        if not following.end():
            work.cancel()

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        if not following.has_begun:
            raise Failure("interrupted; COMMAND was not started") from None
        raise Failure(
            f"interrupted; job {job} may go on in {guest}: `vsock jobs {guest}` shows it"
        ) from None


async def _unwrapped(following: "_Following") -> int:
    try:
        return await following.run()
    except _OutputError as error:
        raise error.error from None


class _OutputError(Exception):
    """Our output cannot be written, which is no fault of the session."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


@dataclass(slots=True)
class _Shown:
    """A descriptor, and how many bytes of the job were written there."""

    descriptor: int
    count: int = 0

    def write(self, piece: bytes) -> None:
        """Write all of it."""
        try:
            write_all(self.descriptor, piece)
        except OSError as error:
            raise _OutputError(error) from None
        self.count += len(piece)


class _Following:
    """A job, and what was shown of it; with an order it is ours: to be started, ended and removed."""

    def __init__(self, where: Place, guest: str, job: str, order: Order | None) -> None:
        self._where = where
        self._guest = guest
        self._job = job
        self._order = order
        self._is_ours = order is not None
        self._shown = (_Shown(1), _Shown(2))
        self._is_connected = False
        self._is_under_way = False
        self._is_to_end = asyncio.Event()

    @property
    def has_begun(self) -> bool:
        """Whether the guest was asked to start it."""
        return self._order is None

    async def run(self) -> int:
        """Follow it until it ends; return its exit code."""
        outcome = await self._in_a_session()
        while isinstance(outcome, str):
            if self._is_to_end.is_set():
                self._fail(f"{outcome} before job {self._job} did, which was told to end")
            self._say(f"{outcome}; job {self._job} is shown again when the guest is back")
            outcome = await again(self._in_a_session, self._say)
        return outcome

    def end(self) -> bool:
        """Have the job ended; False if there is no session for that, or it was asked for before."""
        if not self._is_connected or self._is_to_end.is_set():
            return False
        self._is_to_end.set()
        return True

    async def _in_a_session(self) -> int | str:
        """Follow it in a session of its own; return its exit code, or why the session is over.

        Raises:
            VsockError: there was no session, or it takes no command.
        """
        async with self._where.session(self._guest) as session:
            notice_silence(session)
            self._is_connected, self._is_under_way = True, False
            try:
                if self._order:
                    order, self._order = self._order, None
                    await self._start(session, order)
                    self._is_under_way = True
                ending = asyncio.ensure_future(self._end(session))
                try:
                    code = await self._follow(session)
                    if self._is_to_end.is_set():
                        await ending  # it ends what goes on behind the job's own end
                finally:
                    ending.cancel()
                if self._is_ours:
                    await self._remove(session)
                return code
            except SessionError as error:
                if not self._is_under_way:
                    raise  # as a session that did not begin
                return _text(error)
            finally:
                self._is_connected = False

    async def _start(self, session: "GuestSession", order: Order) -> None:
        # Its variables are the job's, not the script's that starts it.
        script = in_guest.start(self._job, order.command, order.env)
        try:
            result = await self._asked(session, replace(order, command=script, env={}))
        except SessionError as error:
            # A job of that name may be ours, or another one that was there before: it is left alone.
            self._fail(
                f"{_text(error)}; whether job {self._job} was started is not known:"
                f" `vsock jobs {self._guest}` shows it"
            )
        if result.exit_code:
            self._fail(reason_of(result))

    async def _end(self, session: "GuestSession") -> None:
        """End the job when that is wanted."""
        await self._is_to_end.wait()
        # If that fails, the job does not run, or the session has ended: both are seen by who follows.
        with suppress(SessionError):
            await self._asked(session, Order(in_guest.kill(self._job)))

    async def _follow(self, session: "GuestSession") -> int:
        mark = token_hex(8)
        out, err = self._shown
        script = in_guest.follow_on(self._job, out.count, err.count, mark)
        process = await start(session, Order(script))
        self._is_under_way = True
        try:
            async with asyncio.TaskGroup() as group:
                for source, shown in zip(
                    (process.stdout, process.stderr), self._shown, strict=True
                ):
                    group.create_task(self._copy(source, shown, f"{mark}\n".encode()))
            await process.wait_closed()
        except BaseExceptionGroup as errors:
            if self._is_ours:  # nobody reads its output
                await self._asked(session, Order(in_guest.kill(self._job)))
                await self._remove(session)
            raise errors.exceptions[0] from None
        if process.exit_status is None or process.exit_signal:
            raise self._lost()
        if process.exit_status:
            self._fail(self._reason(process.exit_status))
        result = await self._asked(session, Order(in_guest.code(self._job)))
        code = None if result.exit_code else in_guest.printed_code(result.stdout)
        if code is None:
            self._fail(self._reason(in_guest.Followed.GONE))
        return code

    async def _copy(self, source: Any, shown: _Shown, mark: bytes) -> None:
        """Copy until the job's end, or the session's: what has come by then is written before this ends.

        What comes before the mark is what the user's shell says when it starts, and none of the job's.
        """
        is_marked, kept = False, b""
        with suppress(OSError), translated(self._guest):  # the session ended: there is no status
            while piece := await source.read(PIECE):
                if not is_marked:
                    before, found, piece = (kept + piece).partition(mark)
                    is_marked, kept = bool(found), before[-len(mark) :]
                if piece:
                    await in_thread(shown.write, piece)

    def _reason(self, status: int) -> str:
        """Why the job cannot be followed any more."""
        job, it = self._job, "COMMAND" if self._is_ours else "it"
        match status:
            case in_guest.Followed.GONE if self._is_ours or any(one.count for one in self._shown):
                return f"there is no job {job} any more: it was removed, or the guest was restarted or restored"
            case in_guest.Followed.GONE:
                return f"there is no job {job}: see `vsock jobs`"
            case in_guest.Followed.SHORTER:
                return (
                    f"job {job} has written less than was shown: the guest was restored to an earlier time;"
                    f" `vsock attach {self._guest} {job}` shows all of it"
                )
            case in_guest.Followed.RESTARTED:
                return f"job {job} is lost: the guest was restarted before {it} ended"
            case in_guest.Followed.KILLED:
                return f"job {job} is lost: it was ended before it could say how"
        return f"job {job} cannot be shown: exit code {status}"

    async def _remove(self, session: "GuestSession") -> None:
        """Remove what is kept of the job; it has ended, so a failure is no failure of the command."""
        try:
            result = await self._asked(session, Order(in_guest.remove(self._job)))
            reason = reason_of(result) if result.exit_code else ""
        except SessionError as error:
            reason = _text(error)
        if reason:
            self._say(f"{self._guest}: job {self._job} is kept: {reason}")

    async def _asked(self, session: "GuestSession", order: Order) -> Result:
        """Run a script of ours; SessionError if it did not run to its end."""
        result = await captured(session, self._guest, replace(order, most=in_guest.MOST_LISTED))
        if result.error or result.signal:
            raise self._lost()
        return result

    def _lost(self) -> SessionError:
        """The session ended, or the guest ended what ran in it, as it does when it shuts down."""
        return SessionError(errno.ECONNRESET, f"the session with {self._guest} ended")

    def _fail(self, reason: str) -> NoReturn:
        kind = Failure if self._is_ours else click.ClickException
        raise kind(f"{self._guest}: {reason}")

    def _say(self, line: str) -> None:
        click.echo(f"vsock: {line}", err=True)


def _text(error: SessionError) -> str:
    return error.strerror or str(error)

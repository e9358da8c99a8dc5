"""Connects a command in a guest with descriptors of this process, and carries its end back.

Data is copied as bytes, in bounded pieces. Descriptors 0 to 2 may be terminals, pipes or files that other processes
share, so they stay blocking; threads read and write them.
"""

import asyncio
import errno
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vsock._system.descriptors import PIECE, read
from vsock.errors import SessionError
from vsock.ssh.command_line import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncssh import SSHClientProcess

    from vsock.ssh.session import GuestSession

    Process = SSHClientProcess[bytes]
    """A command in a guest; its streams are bytes (`encoding=None`)."""

__all__ = [
    "OutputLimitError",
    "carry",
    "ending_at_signals",
    "forwarded_signals",
    "in_thread",
]

_LOOK_SECONDS: Final = 0.05
_REST_SECONDS: Final = 0.5
"""How long what an ended command wrote may be on its way."""
_T = TypeVar("_T")


class OutputLimitError(Exception):
    """A command wrote more than it may."""


async def carry(
    session: "GuestSession",
    process: "Process",
    *,
    stdin: int | None,
    stdout: Callable[[bytes], object],
    stderr: Callable[[bytes], object],
    most: int | None = None,
) -> None:
    """Copy until the command has ended and all that it wrote is written here.

    Args:
        session: where it runs.
        process: the command.
        stdin: a descriptor to read from, None for an empty standard input.
        stdout: takes what the command writes, called in a thread and one call at a time.
        stderr: the same.
        most: bytes of both together.

    Raises:
        OutputLimitError: the command wrote more than `most` bytes.
        SessionError: the session ended. (asyncssh has errors of its own for that, too.)
        OSError: a descriptor failed; BrokenPipeError when who reads our output is gone.
    """
    left = [most]
    failures: list[OSError] = []
    feeding = asyncio.create_task(_feed(session, process, stdin, failures))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_drain(session.name, process.stdout, stdout, left))
            group.create_task(_drain(session.name, process.stderr, stderr, left))
        await process.wait_closed()
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    if failures:
        raise failures[0]


async def _feed(
    session: "GuestSession", process: "Process", stdin: int | None, failures: list[OSError]
) -> None:
    """Send the data of a descriptor, and its end; one that cannot be read ends the command."""
    try:
        while stdin is not None and (piece := await in_thread(read, stdin)):
            process.stdin.write(piece)
            await process.stdin.drain()
            await session.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, ConnectionResetError):
        return  # the command reads no more; what it writes is still read
    except OSError as error:
        failures.append(error)
        process.close()


async def _drain(
    guest: str, source: Any, sink: Callable[[bytes], object], left: list[int | None]
) -> None:
    while piece := await _read(guest, source):
        if left[0] is not None:
            piece, over = piece[: left[0]], len(piece) > left[0]
            left[0] -= len(piece)
        else:
            over = False
        if piece:
            await in_thread(sink, piece)
        if over:
            raise OutputLimitError


async def _read(guest: str, source: Any) -> bytes:
    """Read from a command; the error of a connection that was lost is not one of a descriptor here."""
    try:
        piece: bytes = await source.read(PIECE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SessionError(errno.ECONNRESET, f"the session with {guest} ended: {reason}") from error
    return piece


async def in_thread(call: Callable[..., _T], *arguments: Any) -> _T:
    """Run a call that may block for ever in a thread which the end of this process does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: object) -> None:
        if not done.done():
            setter(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], object] = (done.set_result, call(*arguments))
        except BaseException as error:  # passed on to who awaits it
            outcome = (done.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await done


@contextmanager
def ending_at_signals(process: "Process") -> "Iterator[Callable[[str], None]]":
    """Give what sends a signal to the command by its name; the second one ends the session with it.

    A command that a signal has ended is over, also if programs that it started in the background keep its streams.
    """
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    looking: list[asyncio.TimerHandle] = []

    def forward(name: str) -> None:
        seen.append(name)
        with suppress(OSError):  # it has ended
            process.send_signal("KILL" if len(seen) > 1 else name)
        if len(seen) > 1:
            process.close()
        else:
            close_behind_its_end()

    def close_behind_its_end() -> None:
        if process.returncode is None:
            looking[:] = [loop.call_later(_LOOK_SECONDS, close_behind_its_end)]
        else:
            loop.call_later(_REST_SECONDS, process.close)

    try:
        yield forward
    finally:
        for handle in looking:
            handle.cancel()


@contextmanager
def forwarded_signals(process: "Process") -> "Iterator[None]":
    """Send this process's SIGINT, SIGTERM, SIGHUP and SIGQUIT to the command instead, as `ending_at_signals` does."""
    loop = asyncio.get_running_loop()
    with ending_at_signals(process) as forward:
        for number, name in SIGNALS.items():
            loop.add_signal_handler(number, forward, name)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

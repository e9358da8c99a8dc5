"""Runs commands in guests for `vsock exec` and `vsock shell`, and connects them with this process's streams and terminal."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vsock._system.descriptors import write_all
from vsock._system.text import printable
from vsock.cli.in_session import Sink, attempt, beside_others, keep
from vsock.cli.orders import (
    FAILED,
    Failure,
    Order,
    Place,
    Result,
    result_of,
    tell,
    timed_out,
    with_output,
    wrote_too_much,
)
from vsock.errors import UsageError, VsockError
from vsock.ssh.attached import OutputLimitError, carry, forwarded_signals, in_thread
from vsock.ssh.command_line import START_SECONDS
from vsock.ssh.session import translated

if TYPE_CHECKING:
    from vsock.ssh.attached import Process
    from vsock.ssh.session import GuestSession

__all__ = ["captured", "in_all", "in_one", "run", "start"]

_GRACE_SECONDS: Final = 2.0
"""How long a command may go on after SIGTERM before SIGKILL."""
_LONGEST_LINE: Final = 1 << 20
_T = TypeVar("_T")


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run it; our own failures become exit code 255, with their line."""
    try:
        return asyncio.run(coroutine)
    except UsageError:
        coroutine.close()
        raise
    except (VsockError, OSError) as error:
        if isinstance(error, BrokenPipeError) and not isinstance(error, VsockError):
            raise  # who reads our output is gone
        raise Failure(_text(error)) from None
    except asyncio.CancelledError:
        raise Failure("interrupted; COMMAND was told to end") from None


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


async def in_one(where: Place, guest: str, order: Order) -> int:
    """Run it with this process's standard streams; returns the exit code."""
    async with where.session(guest) as session:
        process = await start(session, order)
        with ExitStack() as stack:
            if order.is_tty:
                stack.enter_context(_terminal(process))
            else:
                stack.enter_context(forwarded_signals(process))
            streams = (partial(write_all, 1), partial(write_all, 2))
            result = await _see_through(
                session, process, session.name, order, 0 if order.reads else None, *streams
            )
    tell(result)
    return result.exit_code


async def in_all(where: Place, guests: Sequence[str], order: Order, *, show: bool) -> list[Result]:
    """Run it in all guests at once, and show the lines with the guests' names or return them in the results."""
    task = asyncio.current_task()
    assert task
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return list(await asyncio.gather(*(_one(where, guest, order, show=show) for guest in guests)))


async def _one(where: Place, guest: str, order: Order, *, show: bool) -> Result:
    lines = (_Lines(guest, 1), _Lines(guest, 2))
    kept = (bytearray(), bytearray())
    sinks: list[Sink]
    if show:
        sinks = [one.write for one in lines]
    else:
        sinks, order = [partial(keep, one) for one in kept], order.bounded()
    try:
        # Cancelled, this goes on for as long as this process does, whose end the master takes for the command's.
        result = await in_thread(attempt, partial(beside_others, sinks), where, guest, order)
        if result is None:
            async with where.session(guest) as session:
                process = await start(session, order)
                result = await _see_through(session, process, guest, order, None, *sinks)
    except BrokenPipeError:
        raise
    except Failure as failure:
        return Result(guest=guest, exit_code=FAILED, error=failure.message)
    except (VsockError, OSError) as error:
        return Result(guest=guest, exit_code=FAILED, error=_text(error))
    for one in lines:
        await in_thread(one.end)
    return with_output(result, *kept)


async def captured(session: "GuestSession", guest: str, order: Order) -> Result:
    """Run it in an open session, without standard input, and return its output in the result.

    Raises:
        SessionError: it did not start, or the session ended.
    """
    process = await start(session, order)
    kept = (bytearray(), bytearray())
    sinks = [one.extend for one in kept]
    result = await _see_through(session, process, guest, order.bounded(), None, *sinks)
    return with_output(result, *kept)


async def start(session: "GuestSession", order: Order) -> "Process":
    """Start it in an open session; SessionError if it does not start."""
    options: dict[str, Any] = {"encoding": None}
    if order.is_tty:
        options |= {
            "term_type": os.environ.get("TERM", "dumb"),
            "term_size": tuple(os.get_terminal_size(0)),
        }
    command = order.command or None
    seconds = min(order.timeout or START_SECONDS, START_SECONDS)
    return await session.open_process(
        command, env=order.env, cwd=order.workdir, start_timeout=seconds, **options
    )


async def _see_through(
    session: "GuestSession",
    process: "Process",
    guest: str,
    order: Order,
    stdin: int | None,
    stdout: Callable[[bytes], object],
    stderr: Callable[[bytes], object],
) -> Result:
    """Copy until the command has ended, or has to be ended."""
    try:
        async with asyncio.timeout(order.timeout):
            with translated(guest):
                await carry(
                    session, process, stdin=stdin, stdout=stdout, stderr=stderr, most=order.most
                )
    except TimeoutError:
        await _end(process)
        assert order.timeout is not None
        return timed_out(guest, order.timeout)
    except OutputLimitError:
        await _end(process)
        assert order.most is not None
        return wrote_too_much(guest, order.most)
    except BaseException:
        # Interrupted, or our reader is gone: a command without a terminal would go on.
        with suppress(OSError):
            process.terminate()
        raise
    name = printable(process.exit_signal[0], 16) if process.exit_signal else None
    return result_of(guest, process.exit_status, name)


async def _end(process: "Process") -> None:
    """End a command: SIGTERM, then SIGKILL for one that goes on."""
    for ask in (process.terminate, process.kill):
        with suppress(OSError):  # it has ended by itself
            ask()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                await process.wait_closed()
                return
    process.close()


@contextmanager
def _terminal(process: "Process") -> Iterator[None]:
    """This terminal is the command's: keys go there, and its size follows."""
    from vsock.cli.terminal import raw

    loop = asyncio.get_running_loop()

    def resize() -> None:
        with suppress(OSError):  # it has ended
            process.change_terminal_size(*os.get_terminal_size(0))

    loop.add_signal_handler(signal.SIGWINCH, resize)
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, process.close)  # the guest's kernel hangs up its terminal
    try:
        with raw(0):
            yield
    finally:
        for number in (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)


class _Lines:
    """Writes whole lines, each with the name of its guest, to a descriptor that several guests share."""

    def __init__(self, guest: str, descriptor: int) -> None:
        self._prefix = f"{guest}: ".encode()
        self._descriptor = descriptor
        self._rest = b""

    def write(self, piece: bytes, deadline: float | None = None) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        if lines:
            whole = b"".join(self._prefix + line + b"\n" for line in lines)
            with _turn(self._descriptor, deadline):
                write_all(self._descriptor, whole, deadline=deadline)

    def end(self) -> None:
        """Write what has no line end."""
        if self._rest:
            self.write(b"\n")


_TURNS: Final = {1: threading.Lock(), 2: threading.Lock()}


@contextmanager
def _turn(descriptor: int, deadline: float | None) -> Iterator[None]:
    """Have a descriptor to oneself: a pipe takes a long write in parts, and those of other threads between them.

    Raises:
        TimeoutError: others had it until the deadline.
    """
    lock = _TURNS[descriptor]
    if not lock.acquire(timeout=-1 if deadline is None else max(0, deadline - time.monotonic())):
        raise TimeoutError
    try:
        yield
    finally:
        lock.release()

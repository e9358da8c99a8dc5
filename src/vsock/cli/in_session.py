"""Runs a command in a session that a control master keeps open, and connects it with this process's streams.

The counterpart of `remote`, which opens a session of its own. Neither asyncio nor asyncssh is imported: without a login
these are most of what a command costs.
"""

import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from io import FileIO
from typing import Any, Final, Protocol

from vsock._system.descriptors import PIECE, read, write_all
from vsock.cli.orders import (
    Failure,
    Order,
    Place,
    Result,
    result_of,
    timed_out,
    with_output,
    wrote_too_much,
)
from vsock.ssh.command_line import SIGNALS, command_line
from vsock.ssh.master.client import MasterClient

__all__ = ["Sink", "attempt", "beside_others", "captured", "keep", "run"]

_GRACE_SECONDS: Final = 2.0
"""How long a command may go on after SIGTERM before SIGKILL, and how long its end may take after that."""


class Sink(Protocol):
    """Takes what a command writes, until a time of `time.monotonic` at most, when it raises TimeoutError."""

    def __call__(self, piece: bytes, deadline: float | None = None, /) -> object:
        """Take it."""


class _OutputLimitError(Exception):
    """A command wrote more than it may."""


class _GivenUpError(Exception):
    """A second signal came: the command is not waited for any more."""


def attempt(
    runs: "Callable[[MasterClient, str, Order], Result | None]",
    where: Place,
    guest: str,
    order: Order,
) -> Result | None:
    """Run it in the session of the guest that is kept open; None if there is none, or it takes no such order.

    Raises:
        Failure: it did not run.
        BrokenPipeError: who reads our output is gone.
    """
    master = MasterClient.find(where.key(guest))
    if master is None:
        return None
    with master:
        try:
            return runs(master, guest, order)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Failure(error.strerror or str(error)) from None


def run(master: MasterClient, guest: str, order: Order) -> Result | None:
    """Run it with this process's standard streams; None if the master declines.

    Raises:
        SessionError: it did not start.
        OSError: a stream failed; BrokenPipeError when who reads our output is gone.
    """
    sinks = [partial(_write, descriptor) for descriptor in (1, 2)]
    return _run(master, guest, order, 0 if order.reads else None, sinks, _passed_on)


def captured(master: MasterClient, guest: str, order: Order) -> Result | None:
    """Run it without standard input, and return its output in the result; otherwise as `run`.

    Raises:
        Failure: SIGTERM or SIGHUP came.
        KeyboardInterrupt: Ctrl-C.
    """
    kept = (bytearray(), bytearray())
    sinks = [partial(keep, one) for one in kept]
    result = _run(master, guest, order.bounded(), None, sinks, _failing)
    return result and with_output(result, *kept)


def beside_others(
    sinks: Sequence[Sink], master: MasterClient, guest: str, order: Order
) -> Result | None:
    """Run it without standard input, in a thread: the signals of this process are not for it alone; otherwise as `run`."""
    return _run(master, guest, order, None, sinks, lambda *_: nullcontext())


def _write(descriptor: int, piece: bytes, deadline: float | None = None) -> None:
    write_all(descriptor, piece, deadline=deadline)


def keep(kept: bytearray, piece: bytes, _: float | None = None) -> None:
    """A sink that keeps what comes."""
    kept.extend(piece)


def _run(
    master: MasterClient,
    guest: str,
    order: Order,
    stdin: int | None,
    sinks: Sequence[Sink],
    signals: Callable[[MasterClient, Order], AbstractContextManager[None]],
) -> Result | None:
    line = command_line(order.command, env=order.env, cwd=order.workdir) if order.command else None
    with ExitStack() as stack:
        (given, feed), (output, written), (errors, complained) = (_pipe(stack) for _ in range(3))
        theirs = (given, written, complained)
        numbers = [one.fileno() for one in theirs]
        if not master.run(guest, line, _terminal_of(order), numbers, order.timeout):
            return None
        for one in theirs:
            one.close()
        failures: list[OSError] = []
        _feed(stdin, os.dup(feed.fileno()), master, failures)
        feed.close()
        try:
            with signals(master, order):
                result = _follow(master, guest, order, {output: sinks[0], errors: sinks[1]})
        except _GivenUpError:
            return result_of(guest, None, None)
    if failures:
        raise failures[0]
    return result


def _pipe(stack: ExitStack) -> tuple[FileIO, FileIO]:
    reader, writer = os.pipe()
    return stack.enter_context(FileIO(reader, "r")), stack.enter_context(FileIO(writer, "w"))


def _terminal_of(order: Order) -> dict[str, Any] | None:
    if not order.is_tty:
        return None
    return {"type": os.environ.get("TERM", "dumb"), "size": list(os.get_terminal_size(0))}


def _feed(stdin: int | None, feed: int, master: MasterClient, failures: list[OSError]) -> None:
    """Send the data of a descriptor, and its end, in a thread that nobody waits for: its read may last for ever."""

    def copy() -> None:
        try:
            while stdin is not None and (piece := read(stdin)):
                write_all(feed, piece)
        except BrokenPipeError:
            pass  # the command reads no more; what it writes is still read
        except OSError as error:
            failures.append(error)
            _hang_up(master)
        finally:
            os.close(feed)

    threading.Thread(target=copy, daemon=True).start()


def _follow(master: MasterClient, guest: str, order: Order, outputs: dict[FileIO, Sink]) -> Result:
    """Copy until the command has ended, or has to be ended."""
    try:
        return result_of(guest, *_copy(master, outputs, order.timeout, order.most))
    except TimeoutError:
        _end(master, outputs)
        assert order.timeout is not None
        return timed_out(guest, order.timeout)
    except _OutputLimitError:
        _end(master, outputs)
        assert order.most is not None
        return wrote_too_much(guest, order.most)


def _copy(
    master: MasterClient, outputs: dict[FileIO, Sink], seconds: float | None, most: int | None
) -> tuple[int | None, str | None]:
    """Copy until the command has ended and all that it wrote is written here; return how it ended.

    Raises:
        TimeoutError: it goes on for longer than `seconds`.
        _OutputLimitError: it wrote more than `most` bytes.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    ended = None
    with selectors.DefaultSelector() as selector:
        selector.register(master.sock, selectors.EVENT_READ)
        for output in outputs:
            selector.register(output, selectors.EVENT_READ)
        while ended is None or selector.get_map():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                if not isinstance(key.fileobj, FileIO):
                    ended = master.ended()
                    selector.unregister(key.fileobj)
                elif piece := os.read(key.fd, PIECE):
                    over = most is not None and len(piece) > most
                    piece = piece[:most]
                    most = None if most is None else most - len(piece)
                    outputs[key.fileobj](piece, deadline)
                    if over:
                        raise _OutputLimitError
                else:
                    selector.unregister(key.fileobj)
    return ended


def _end(master: MasterClient, outputs: dict[FileIO, Sink]) -> None:
    """End a command: SIGTERM, then SIGKILL for one that goes on."""
    for output in outputs:
        output.close()
    master.sock.settimeout(_GRACE_SECONDS)
    for name in ("TERM", "KILL"):
        master.tell({"signal": name})
        with suppress(TimeoutError):
            master.ended()
            return


def _hang_up(master: MasterClient) -> None:
    with suppress(OSError):  # the master has gone
        master.sock.shutdown(socket.SHUT_WR)


@contextmanager
def _passed_on(master: MasterClient, order: Order) -> Iterator[None]:
    """Signals of this process go to the command; with a terminal its keys do, and its size follows."""
    if not order.is_tty:
        forward = _Forward(master)
        with _handling({number: partial(forward, name) for number, name in SIGNALS.items()}):
            yield
        return
    from vsock.cli.terminal import raw

    def resize(*_: object) -> None:
        with suppress(OSError):  # the terminal was hung up
            master.tell({"size": list(os.get_terminal_size(0))})

    def hang_up(*_: object) -> None:
        _hang_up(master)  # the guest's kernel hangs up its terminal

    handlers = {signal.SIGWINCH: resize, signal.SIGTERM: hang_up, signal.SIGHUP: hang_up}
    with raw(0), _handling(handlers):
        yield


class _Forward:
    """Sends signals to the command; the second one kills it, and nothing is waited for any more."""

    def __init__(self, master: MasterClient) -> None:
        self._master = master
        self._seen = 0

    def __call__(self, name: str, *_: object) -> None:
        self._seen += 1
        self._master.tell({"signal": name})
        if self._seen == 2:
            raise _GivenUpError


@contextmanager
def _failing(_: MasterClient, __: Order) -> Iterator[None]:
    """Signals end this process in good order, as they do in `remote`."""

    def fail(*_: object) -> None:
        raise Failure("interrupted; COMMAND was told to end")

    with _handling({signal.SIGTERM: fail, signal.SIGHUP: fail}):
        yield


@contextmanager
def _handling(handlers: Mapping[signal.Signals, Callable[..., object]]) -> Iterator[None]:
    with ExitStack() as stack:
        for number, handler in handlers.items():
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield

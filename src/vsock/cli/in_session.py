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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from io import FileIO
from typing import Any, Final

from vsock._system.descriptors import PIECE, read, write_all
from vsock.cli.orders import (
    MOST_IN_JSON,
    Failure,
    Order,
    Place,
    Result,
    result_of,
    timed_out,
    with_output,
    wrote_too_much,
)
from vsock.ssh.command_line import command_line
from vsock.ssh.master.client import MasterClient

__all__ = ["attempt", "captured", "run"]

_GRACE_SECONDS: Final = 2.0
"""How long a command may go on after SIGTERM before SIGKILL; how long its end, and the rest of its output, may take."""
_FORWARDED: Final = {
    signal.SIGINT: "INT",
    signal.SIGTERM: "TERM",
    signal.SIGHUP: "HUP",
    signal.SIGQUIT: "QUIT",
}
_Sink = Callable[[bytes], object]


class _OutputLimitError(Exception):
    """A command wrote more than it may."""


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
    """Run it with this process's standard streams; None if the master takes no order that is so long.

    Raises:
        SessionError: it did not start.
        OSError: a stream failed; BrokenPipeError when who reads our output is gone.
    """
    return _run(master, guest, order, 0, (partial(write_all, 1), partial(write_all, 2)))


def captured(master: MasterClient, guest: str, order: Order) -> Result | None:
    """Run it without standard input, and return its output in the result; otherwise as `run`."""
    kept = (bytearray(), bytearray())
    limited = replace(order, most=MOST_IN_JSON if order.most is None else order.most)
    result = _run(master, guest, limited, None, (kept[0].extend, kept[1].extend))
    return result and with_output(result, *kept)


def _run(
    master: MasterClient, guest: str, order: Order, stdin: int | None, sinks: tuple[_Sink, _Sink]
) -> Result | None:
    line = command_line(order.command, env=order.env, cwd=order.workdir) if order.command else None
    with ExitStack() as stack:
        (given, feed), (output, written), (errors, complained) = (_pipe(stack) for _ in range(3))
        theirs = (given, written, complained)
        numbers = [one.fileno() for one in theirs]
        if not master.run(line, _terminal_of(order), numbers, order.timeout):
            return None
        for one in theirs:
            one.close()
        failures: list[OSError] = []
        _feed(stdin, os.dup(feed.fileno()), master, failures)
        feed.close()
        stack.enter_context(_passed_on(master, is_tty=order.is_tty))
        result = _follow(master, guest, order, {output: sinks[0], errors: sinks[1]})
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


def _follow(master: MasterClient, guest: str, order: Order, outputs: dict[FileIO, _Sink]) -> Result:
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
    master: MasterClient, outputs: dict[FileIO, _Sink], seconds: float | None, most: int | None
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
            ready = selector.select(_GRACE_SECONDS if ended else left)
            if ended and not ready:
                break
            for key, _ in ready:
                if not isinstance(key.fileobj, FileIO):
                    ended = master.ended()
                    selector.unregister(key.fileobj)
                elif piece := os.read(key.fd, PIECE):
                    over = most is not None and len(piece) > most
                    piece = piece[:most]
                    most = None if most is None else most - len(piece)
                    outputs[key.fileobj](piece)
                    if over:
                        raise _OutputLimitError
                else:
                    selector.unregister(key.fileobj)
    return ended


def _end(master: MasterClient, outputs: dict[FileIO, _Sink]) -> None:
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
def _passed_on(master: MasterClient, *, is_tty: bool) -> Iterator[None]:
    """Signals of this process go to the command; with a terminal its keys do, and its size follows."""
    handlers: dict[int, Callable[..., object]] = {}
    with ExitStack() as stack:
        if is_tty:
            from vsock.cli.terminal import raw

            handlers = {
                signal.SIGWINCH: lambda *_: master.tell({"size": list(os.get_terminal_size(0))}),
                # The guest's kernel hangs up its terminal.
                signal.SIGTERM: lambda *_: _hang_up(master),
                signal.SIGHUP: lambda *_: _hang_up(master),
            }
            stack.enter_context(raw(0))
        else:
            handlers = {
                one: partial(_tell_signal, master, name) for one, name in _FORWARDED.items()
            }
        for number, handler in handlers.items():
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


def _tell_signal(master: MasterClient, name: str, *_: object) -> None:
    master.tell({"signal": name})

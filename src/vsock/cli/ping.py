"""`vsock ping`: how fast the other side answers.

VSOCK has no echo request, but every connection attempt is answered: with RESPONSE if a program
listens, else with RST. Both come from the other side's kernel, so the time of the answer is the round
trip. `--echo` measures data instead, through a service that sends back the data it receives.
"""

import os
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vsock.cli.completion import parties
from vsock.cli.connect import connect
from vsock.cli.options import (
    Seconds,
    json_option,
    runtime_dir_option,
    transport_of,
    transport_option,
)
from vsock.cli.output import print_json
from vsock.errors import ConnectRefused, ConnectTimeout

if TYPE_CHECKING:
    from vsock.transports import Transport

__all__ = ["ping"]

_DEFAULT_PORT: Final = 1
"""A port on which normally no program listens, so that the answer is a refusal."""

_ECHO_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class _Reply:
    answer: str
    milliseconds: float


_Probe = Callable[[], _Reply | None]


@click.command(context_settings={"show_default": True})
@click.argument("target", metavar="NAME[:PORT]", shell_complete=parties)
@click.option("-c", "--count", type=click.IntRange(min=1), default=5, help="Number of attempts.")
@click.option(
    "-i", "--interval", type=Seconds(0), default=0.2, help="Seconds between two attempts."
)
@click.option("--timeout", type=Seconds(), default=2.0, help="Seconds to wait for an answer.")
@click.option(
    "--echo", is_flag=True, help="PORT is an echo service: measure data instead of connecting."
)
@json_option
@transport_option
@runtime_dir_option
def ping(
    target: str,
    count: int,
    interval: float,
    timeout: float,
    echo: bool,
    as_json: bool,
    transport: str | None,
    runtime_dir: Path | None,
) -> int:
    """Measure how fast a guest (name or CID) answers; a refusal counts as an answer.

    Exit code: 0 if every attempt was answered, 1 if one was not, 2 if none could be made. Ctrl-C ends it
    early and prints the summary of the attempts so far.
    """
    if ":" not in target:
        if echo:
            raise click.UsageError("--echo needs NAME:PORT, the address of an echo service")
        target = f"{target}:{_DEFAULT_PORT}"
    where = transport_of(runtime_dir, transport)
    run = _Run(target, count, interval, as_json)
    if echo:
        with closing(connect(target, timeout, where)) as connection:
            run.go(lambda: _echo(connection))
    else:
        run.go(lambda: _connect(target, timeout, where))
    run.print_summary()
    return 0 if run.sent == len(run.replies) > 0 else 1


class _Run:
    """Attempts, one after the other, and their results."""

    def __init__(self, target: str, count: int, interval: float, as_json: bool) -> None:
        self._target = target
        self._count = count
        self._interval = interval
        self._as_json = as_json
        self._attempts: list[_Reply | None] = []  # None: no answer

    @property
    def sent(self) -> int:
        """The number of finished attempts."""
        return len(self._attempts)

    @property
    def replies(self) -> list[_Reply]:
        """The answers."""
        return [reply for reply in self._attempts if reply]

    def go(self, probe: _Probe) -> None:
        """Make all attempts, or those until Ctrl-C; the one that it interrupts does not count."""
        try:
            for number in range(1, self._count + 1):
                self._take(number, probe())
                if number < self._count:
                    time.sleep(self._interval)
        except KeyboardInterrupt:
            if not self._as_json:
                click.echo()  # the terminal has shown ^C

    def _take(self, number: int, reply: _Reply | None) -> None:
        self._attempts.append(reply)
        if not self._as_json:
            said = f"{reply.answer}, {reply.milliseconds:.3f} ms" if reply else "no answer"
            click.echo(f"{self._target}: {number}: {said}")

    def print_summary(self) -> None:
        """Print how many attempts were answered, and how fast."""
        times = [reply.milliseconds for reply in self.replies]
        rtt = (
            {"min": min(times), "median": statistics.median(times), "max": max(times)}
            if times
            else None
        )
        if self._as_json:
            summary = {"target": self._target, "sent": self.sent, "answered": len(times)}
            print_json({**summary, "rtt_ms": rtt, "replies": self.replies})
            return
        said = f"{self.sent} sent, {len(times)} answered"
        if rtt:
            said += f", rtt min/median/max {rtt['min']:.3f}/{rtt['median']:.3f}/{rtt['max']:.3f} ms"
        click.echo(f"{self._target}: {said}")


def _connect(target: str, timeout: float, transport: "Transport") -> _Reply | None:
    begun = time.perf_counter()
    try:
        connection = connect(target, timeout, transport)
    except ConnectTimeout:
        return None
    except ConnectRefused:
        return _Reply("refused", (time.perf_counter() - begun) * 1000)
    answered = time.perf_counter()
    connection.close()
    return _Reply("connected", (answered - begun) * 1000)


def _echo(connection: socket.socket) -> _Reply | None:
    sent = os.urandom(_ECHO_BYTES)
    begun = time.perf_counter()
    connection.sendall(sent)
    got = b""
    while len(got) < len(sent):
        try:
            piece = connection.recv(len(sent) - len(got))
        except TimeoutError:
            return None
        if not piece:
            raise click.ClickException("the echo service closed the connection")
        got += piece
    if got != sent:
        raise click.ClickException("this is not an echo service: it answered with other bytes")
    return _Reply("echo", (time.perf_counter() - begun) * 1000)

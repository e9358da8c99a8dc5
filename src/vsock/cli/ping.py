"""`vsock ping`: how fast the other side answers.

VSOCK has no echo request, but every connection attempt is answered: with a connection when somebody
listens, else with a reset. Either answer comes from the other side's kernel, so its time is the
round trip. `--echo` measures data instead, through a service that sends back what it gets.
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

from vsock.cli.options import json_option, runtime_dir_option, transport_of, transport_option
from vsock.cli.output import print_json
from vsock.errors import ConnectRefused, ConnectTimeout

if TYPE_CHECKING:
    from vsock.transports import Transport

__all__ = ["ping"]

_DEFAULT_PORT: Final = 1
"""A port nobody listens on as a rule: then the answer is a refusal."""

_ECHO_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class _Reply:
    answer: str
    milliseconds: float


_Probe = Callable[[], _Reply | None]


@click.command(context_settings={"show_default": True})
@click.argument("target", metavar="NAME[:PORT]")
@click.option("-c", "--count", type=click.IntRange(min=1), default=5, help="How many times.")
@click.option(
    "-i", "--interval", type=click.FloatRange(min=0), default=0.2, help="Seconds between two."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    help="Seconds to wait for an answer.",
)
@click.option("--echo", is_flag=True, help="PORT is an echo service: measure data, not connecting.")
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
    """Measure how fast a guest (name or CID) answers; a refused port is an answer too.

    Exit code 0 when every attempt was answered.
    """
    if ":" not in target:
        if echo:
            raise click.UsageError("--echo needs NAME:PORT, the address of an echo service")
        target = f"{target}:{_DEFAULT_PORT}"
    where = transport_of(runtime_dir, transport)
    if echo:
        from vsock import sockets

        with closing(sockets.create_connection(target, timeout, transport=where)) as connection:
            replies = _ping(target, lambda: _echo(connection), count, interval, as_json)
    else:
        replies = _ping(target, lambda: _connect(target, timeout, where), count, interval, as_json)
    _print_summary(target, count, replies, as_json)
    return 0 if len(replies) == count else 1


def _ping(target: str, probe: _Probe, count: int, interval: float, is_quiet: bool) -> list[_Reply]:
    replies = []
    for number in range(1, count + 1):
        reply = probe()
        if reply:
            replies.append(reply)
        if not is_quiet:
            said = f"{reply.answer}, {reply.milliseconds:.3f} ms" if reply else "no answer"
            click.echo(f"{target}: {number}: {said}")
        if number < count:
            time.sleep(interval)
    return replies


def _connect(target: str, timeout: float, transport: "Transport") -> _Reply | None:
    from vsock import sockets

    begun = time.perf_counter()
    try:
        connection = sockets.create_connection(target, timeout, transport=transport)
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
        raise click.ClickException("this is no echo service: it answered with other bytes")
    return _Reply("echo", (time.perf_counter() - begun) * 1000)


def _print_summary(target: str, count: int, replies: list[_Reply], as_json: bool) -> None:
    times = [reply.milliseconds for reply in replies]
    rtt = (
        {"min": min(times), "median": statistics.median(times), "max": max(times)}
        if times
        else None
    )
    if as_json:
        print_json(
            {
                "target": target,
                "sent": count,
                "answered": len(replies),
                "rtt_ms": rtt,
                "replies": replies,
            }
        )
        return
    said = f"{count} sent, {len(replies)} answered"
    if rtt:
        said += f", rtt min/median/max {rtt['min']:.3f}/{rtt['median']:.3f}/{rtt['max']:.3f} ms"
    click.echo(f"{target}: {said}")

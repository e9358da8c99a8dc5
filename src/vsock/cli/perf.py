"""`vsock perf`: measures connections, as iperf does."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from vsock.cli.output import bytes_text, print_json
from vsock.errors import ConnectRefused

if TYPE_CHECKING:
    from vsock.transports import Transport

__all__ = ["perf"]

_PORT = 5201


@click.command(context_settings={"show_default": True})
@click.argument("target", metavar="[ADDRESS]", required=False, shell_complete=parties)
@click.option("-s", "--server", is_flag=True, help="Run the server, until interrupted.")
@click.option("-p", "--port", type=click.IntRange(1), default=_PORT, help="The server's port.")
@click.option(
    "-t", "--time", "seconds", type=Seconds(0.01), default=5.0, help="Seconds to measure."
)
@click.option("-P", "--parallel", type=click.IntRange(1, 1024), default=1, help="Number of flows.")
@click.option(
    "-l", "--size", type=click.IntRange(1, 1 << 24), default=1 << 16, help="Bytes per operation."
)
@click.option("-R", "--reverse", is_flag=True, help="The server sends instead.")
@click.option(
    "--message", type=click.IntRange(8, 1 << 16), default=64, help="Bytes per round trip."
)
@click.option(
    "--seqpacket",
    is_flag=True,
    help="Messages (SEQPACKET) instead of a stream; give it at both ends.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the result to FILE."
)
@click.option(
    "--program", is_flag=True, help="Print a program with server and client, to copy to a guest."
)
@json_option
@transport_option
@runtime_dir_option
def perf(
    target: str | None,
    server: bool,
    port: int,
    seconds: float,
    parallel: int,
    size: int,
    reverse: bool,
    message: int,
    seqpacket: bool,
    plot: Path | None,
    program: bool,
    as_json: bool,
    transport: str | None,
    runtime_dir: Path | None,
) -> int:
    """Measure throughput, round trips and connection rate to a server at ADDRESS (NAME[:PORT]).

    First run `vsock perf --server` at the other end, with --seqpacket if you measure that. In a guest
    without this package, run the program that --program prints: `python3 FILE server`. In the result,
    "there" is the direction to the server, "back" the direction from it: the halves of a round trip.
    """
    from vsock.perf import ends

    if program:
        click.echo(Path(ends.__file__).read_text(), nl=False)
        return 0
    if server == (target is not None):
        raise click.UsageError("give either --server or the ADDRESS of a server")
    kind = socket.SOCK_SEQPACKET if seqpacket else socket.SOCK_STREAM
    where = transport_of(runtime_dir, transport)
    if target is None:
        return _serve(port, kind, where)
    if ":" not in target:
        target = f"{target}:{port}"
    if plot:
        from vsock.perf.plot import check

        check(plot)
    plan = {"size": size, "seconds": seconds, "flows": parallel, "reverse": reverse}
    with _explained(target, kind):
        result = _measure(target, kind, where, plan, message, is_quiet=as_json)
    if as_json:
        print_json({"target": target, "type": "seqpacket" if seqpacket else "stream", **result})
    else:
        _print(result)
    if plot:
        from vsock.perf.plot import draw

        draw(result, plot, f"vsock perf {target}")
    return 0


@contextmanager
def _explained(target: str, kind: int) -> Iterator[None]:
    """If a measurement fails, name the usual reason: no `vsock perf --server` at the other end."""
    from vsock.perf.ends import PerfError

    server = "vsock perf --server" + (" --seqpacket" if kind == socket.SOCK_SEQPACKET else "")
    try:
        yield
    except PerfError as error:
        raise click.ClickException(f"{target}: {error}; is a `{server}` there?") from None
    except ConnectRefused as error:
        reason = f"{error.strerror}; start `{server}` at the other end"
        raise click.ClickException(reason) from None


def _serve(port: int, kind: int, transport: "Transport") -> int:
    from vsock import sockets
    from vsock.perf import ends

    with sockets.create_server(port, type=kind, transport=transport) as listener:
        click.echo(f"listening on {listener.getsockname()}", err=True)
        ends.serve(listener)
    return 0


def _measure(
    target: str,
    kind: int,
    transport: "Transport",
    plan: dict[str, Any],
    message: int,
    *,
    is_quiet: bool,
) -> dict[str, Any]:
    from vsock.perf import ends
    from vsock.perf.processes import switch_usage
    from vsock.transports import SwitchTransport

    make = partial(connect, target, None, transport, type=kind)
    directory = transport.directory if isinstance(transport, SwitchTransport) else None
    usage = switch_usage(directory) if directory else None
    progress = None if is_quiet else _Progress()
    result = ends.throughput(make, **plan, progress=progress)
    if usage:
        gib = result["bytes"] / (1 << 30) or 1
        result["cpu_seconds_per_gib"]["switch"] = usage.seconds() / gib
    result |= ends.round_trips(make, size=message, seconds=min(plan["seconds"], 2))
    result |= ends.connections(make, seconds=min(plan["seconds"], 2))
    return {**plan, **result}


class _Progress:
    """A line for each second."""

    def __init__(self) -> None:
        self._before = (0.0, 0)

    def __call__(self, elapsed: float, moved: int) -> None:
        rate = (moved - self._before[1]) / (elapsed - self._before[0])
        self._before = (elapsed, moved)
        click.echo(f"{elapsed:6.1f} s  {bytes_text(int(rate)):>10}/s")


def _print(result: dict[str, Any]) -> None:
    rate = bytes_text(int(result["bytes_per_second"]))
    moved = bytes_text(result["bytes"])
    click.echo(f"throughput    {rate}/s ({moved} in {result['seconds']:.2f} s)")
    counts = result["flow_bytes"]
    if len(counts) > 1:
        slowest = min(counts) / (sum(counts) / len(counts) or 1)
        click.echo(f"flows         {len(counts)}, the slowest has {slowest:.2f} of the mean")
    used = [
        f"{name} {seconds:.2f} s"
        for name, seconds in result["cpu_seconds_per_gib"].items()
        if seconds is not None
    ]
    click.echo(f"CPU per GiB   {', '.join(used)}")
    for name, key in (
        ("round trip", "round_trip_us"),
        ("  there", "there_us"),
        ("  back", "back_us"),
        ("connecting", "connect_us"),
    ):
        spread = result[key]
        shown = ", ".join(f"{part} {spread[part]:.1f}" for part in ("p50", "p99", "p99.9", "max"))
        click.echo(f"{name:13} {shown} µs")
    click.echo(f"connections   {result['connections_per_second']:.0f}/s")

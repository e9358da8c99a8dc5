"""Both ends of `vsock perf`, over plain Unix sockets of both types."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsock.perf import ends

KINDS = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]

Connect = Callable[[], socket.socket]


@pytest.fixture(params=KINDS, ids=["stream", "seqpacket"])
def connect(request: pytest.FixtureRequest, runtime_dir: Path) -> Iterator[Connect]:
    """Makes connections to a running server."""
    path = str(runtime_dir / "server")
    with socket.socket(socket.AF_UNIX, request.param) as listener:
        listener.bind(path)
        listener.listen()
        serving = threading.Thread(target=ends.serve, args=(listener,))
        serving.start()

        def make() -> socket.socket:
            made = socket.socket(socket.AF_UNIX, request.param)
            made.connect(path)
            return made

        yield make
        listener.shutdown(socket.SHUT_RDWR)
    serving.join(10)
    assert not serving.is_alive()


@pytest.mark.parametrize("reverse", [False, True])
def test_throughput_counts_every_flow_at_the_receiver(connect: Connect, reverse: bool) -> None:
    """The sum of the flows is the total, and there is one count per flow."""
    seen: list[tuple[float, int]] = []
    result = ends.throughput(
        connect,
        size=4096,
        seconds=0.2,
        flows=3,
        reverse=reverse,
        progress=lambda at, count: seen.append((at, count)),
        interval=0.05,
    )
    assert result["bytes"] == sum(result["flow_bytes"]) > 0
    assert len(result["flow_bytes"]) == 3
    assert result["bytes"] % 4096 == 0
    assert seen == result["series"]
    assert [count for _, count in seen] == sorted(count for _, count in seen)
    assert result["cpu_seconds_per_gib"]["client"] > 0


def test_round_trips_split_into_both_ways(connect: Connect) -> None:
    """With one clock for both ends, the two directions of the fastest round trip add up to it."""
    result = ends.round_trips(connect, size=64, seconds=0.1)
    trip, there, back = (result[name] for name in ("round_trip_us", "there_us", "back_us"))
    assert trip["count"] == there["count"] == back["count"] > 1
    assert 0 < trip["min"] <= trip["p50"] <= trip["p99"] <= trip["max"]
    assert there["min"] + back["min"] <= trip["min"] + 1


def test_connections_are_counted(connect: Connect) -> None:
    """The rate and the times are of the same connections."""
    result = ends.connections(connect, seconds=0.1)
    assert result["connections_per_second"] * 0.09 < result["connect_us"]["count"]


@pytest.mark.parametrize("request_bytes", [b"x" * 24, b"vsperf01" + b"\xff" * 16])
def test_server_closes_on_what_it_does_not_understand(
    connect: Connect, request_bytes: bytes
) -> None:
    """For another program, or a newer client, it closes the connection, so that nothing hangs."""
    with connect() as connection:
        connection.settimeout(10)
        connection.sendall(request_bytes)
        assert connection.recv(64) == b""


def test_server_that_leaves_is_an_error() -> None:
    """A missing receipt is an error, not a result."""

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    with pytest.raises((ends.PerfError, OSError)):
        ends.throughput(connect, seconds=0.1)


def test_percentiles_are_values_that_occurred() -> None:
    """Nearest rank: each percentile is one of the values."""
    spread = ends.percentiles([float(n) for n in range(1000, 0, -1)])
    assert (spread["min"], spread["p50"], spread["p99.9"], spread["max"]) == (1, 501, 1000, 1000)
    assert ends.percentiles([7.0])["p99"] == 7


def test_file_runs_without_the_package(tmp_path: Path) -> None:
    """A guest has only Python and this file."""
    alone = tmp_path / "ends.py"
    alone.write_text(Path(ends.__file__).read_text())
    command = [sys.executable, "-I", "-S", str(alone), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "server" in done.stdout

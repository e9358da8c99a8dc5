"""Both ends of a measurement, in one file that needs nothing but Python.

`vsock perf` uses it on the host. In a guest, copy this file there and run

    python3 ends.py server [PORT]
    python3 ends.py client CID[:PORT] [--seqpacket] [--flows N] [--size BYTES] [--seconds S] [--reverse]

which uses the guest kernel's AF_VSOCK; the client prints JSON.

Each connection begins with a `_HEADER` from the client, with the mode of the server:

| mode | server |
| --- | --- |
| SINK | receives until the end, then sends the number of bytes, the time and the processor time |
| SOURCE | sends for the requested time, then the same |
| ECHO | sends every message back, with its clock in the first 8 bytes |
| GREET | sends one byte and closes |
"""

import errno
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PORT = 5201
MAGIC = b"vsperf01"
SINK, SOURCE, ECHO, GREET = range(4)
_HEADER = struct.Struct("<8sIIQ")  # magic, mode, size of an operation, duration in nanoseconds
_REPORT = struct.Struct("<QQQ")  # bytes, nanoseconds, nanoseconds of processor time
_CLOCK = struct.Struct("<Q")
_PATIENCE = 20.0  # seconds to wait for data that should arrive at once

Connect = Callable[[], socket.socket]
Progress = Callable[[float, int], None]
"""Seconds since the start, and all bytes so far."""


class PerfError(Exception):
    """The other end did not follow the protocol, or closed."""


# The server


def serve(listener: socket.socket) -> None:
    """Serve every connection in a thread of its own, until the listener is closed.

    Raises OSError if accept fails for another reason, for instance because the switch has ended.
    """
    while True:
        try:
            connection = listener.accept()[0]
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EINVAL):  # closed, or shut down
                return
            raise
        threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    with connection:
        try:
            connection.settimeout(_PATIENCE)
            magic, mode, size, duration = _HEADER.unpack(_exactly(connection, _HEADER.size))
            if magic != MAGIC or not 0 < size <= 1 << 24 or mode not in _SERVICES:
                return
            _SERVICES[mode](connection, size, duration)
        except (OSError, PerfError):
            return  # the client has closed its connection


def _sink(connection: socket.socket, size: int, _: int) -> None:
    count, nanoseconds, used = receive_all(connection, size)
    connection.sendall(_REPORT.pack(count, nanoseconds, used))


def _source(connection: socket.socket, size: int, duration: int) -> None:
    send_for(connection, size, duration)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(64):
        pass  # until the client has read everything and closes


def _echo(connection: socket.socket, size: int, _: int) -> None:
    while True:
        message = _exactly(connection, size)
        connection.sendall(_CLOCK.pack(time.monotonic_ns()) + message[_CLOCK.size :])


def _greet(connection: socket.socket, _size: int, _duration: int) -> None:
    connection.sendall(b"!")


_SERVICES = {SINK: _sink, SOURCE: _source, ECHO: _echo, GREET: _greet}


# Functions of both ends


def receive_all(
    connection: socket.socket, size: int, note: Callable[[int], None] = lambda _: None
) -> tuple[int, int, int]:
    """Receive until the end; returns bytes, nanoseconds and processor time of this thread."""
    buffer = bytearray(max(size, 1 << 16))
    count = 0
    first = last = time.monotonic_ns()
    used = time.thread_time_ns()
    while got := connection.recv_into(buffer):
        last = time.monotonic_ns()
        if count == 0:
            first = last
        count += got
        note(got)
    return count, last - first, time.thread_time_ns() - used


def send_for(
    connection: socket.socket,
    size: int,
    nanoseconds: int,
    note: Callable[[int], None] = lambda _: None,
) -> int:
    """Send for a time; returns the bytes sent."""
    message = bytes(size)
    count = 0
    end = time.monotonic_ns() + nanoseconds
    while time.monotonic_ns() < end:
        connection.sendall(message)
        count += size
        note(size)
    return count


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Receive exactly this many bytes; from a SEQPACKET socket, one message."""
    data = connection.recv(size)
    while data and len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            break
        data += piece
    if len(data) < size:
        raise PerfError("the other end closed the connection")
    return data


def _begin(connect: Connect, mode: int, size: int, seconds: float) -> socket.socket:
    connection = connect()
    try:
        connection.settimeout(_PATIENCE + seconds)
        connection.sendall(_HEADER.pack(MAGIC, mode, size, int(seconds * 1e9)))
    except OSError:
        connection.close()
        raise
    return connection


# The client


class _Flow(threading.Thread):
    """One connection that carries bytes in one direction."""

    def __init__(self, connect: Connect, size: int, seconds: float, reverse: bool) -> None:
        super().__init__(daemon=True)
        self._size, self._seconds, self._reverse = size, seconds, reverse
        self.connection = _begin(connect, SOURCE if reverse else SINK, size, seconds)
        self.moved = 0  # bytes so far, as this end sees it
        self.report = (0, 0, 0)
        self.cpu = [0, 0]  # nanoseconds of this end, of the server
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self.connection:
                self._receive() if self._reverse else self._send()
        except (OSError, PerfError) as error:
            self.error = error

    def _note(self, count: int) -> None:
        self.moved += count

    def _receive(self) -> None:
        self.report = receive_all(self.connection, self._size, self._note)
        self.cpu[0] = self.report[2]

    def _send(self) -> None:
        used = time.thread_time_ns()
        sent = send_for(self.connection, self._size, int(self._seconds * 1e9), self._note)
        self.connection.shutdown(socket.SHUT_WR)
        self.cpu[0] = time.thread_time_ns() - used
        self.report = _REPORT.unpack(_exactly(self.connection, _REPORT.size))
        self.cpu[1] = self.report[2]
        if self.report[0] != sent:
            raise PerfError(f"{sent} bytes were sent, {self.report[0]} arrived")


def throughput(
    connect: Connect,
    *,
    size: int = 1 << 16,
    seconds: float = 5.0,
    flows: int = 1,
    reverse: bool = False,
    progress: Progress | None = None,
    interval: float = 1.0,
) -> dict[str, Any]:
    """Move bytes over some connections for a time; the receiver's count and time make the rate."""
    running: list[_Flow] = []
    try:
        running.extend(_Flow(connect, size, seconds, reverse) for _ in range(flows))
    except OSError:
        for flow in running:
            flow.connection.close()
        raise
    begun = time.monotonic()
    for flow in running:
        flow.start()
    series: list[tuple[float, int]] = []
    while any(flow.is_alive() for flow in running):
        running[-1].join(interval / 10)
        elapsed = time.monotonic() - begun
        if elapsed >= (len(series) + 1) * interval:
            series.append((round(elapsed, 4), sum(flow.moved for flow in running)))
            if progress:
                progress(*series[-1])
    for flow in running:
        if flow.error:
            raise PerfError(str(flow.error) or type(flow.error).__name__) from flow.error
    counts = [flow.report[0] for flow in running]
    took = max(flow.report[1] for flow in running) / 1e9
    total = sum(counts)
    gib = total / (1 << 30) or 1
    return {
        "bytes": total,
        "seconds": took,
        "bytes_per_second": total / took if took else 0.0,
        "flow_bytes": counts,
        "series": series,
        "cpu_seconds_per_gib": {
            "client": sum(flow.cpu[0] for flow in running) / 1e9 / gib,
            "server": None if reverse else sum(flow.cpu[1] for flow in running) / 1e9 / gib,
        },
    }


def round_trips(connect: Connect, *, size: int = 64, seconds: float = 2.0) -> dict[str, Any]:
    """Send a message and wait for its echo, repeatedly; times in microseconds.

    One-way times use the server's clock in each answer. The offset between the two clocks is computed
    from the fastest round trip, whose halves are assumed to take equally long.
    """
    size = max(size, _CLOCK.size)
    samples: list[tuple[int, int, int]] = []
    with _begin(connect, ECHO, size, seconds) as connection:
        message = bytes(size)
        end = time.monotonic_ns() + int(seconds * 1e9)
        sent = time.monotonic_ns()
        while sent < end or not samples:
            connection.sendall(message)
            answer = _exactly(connection, size)
            back = time.monotonic_ns()
            samples.append((sent, _CLOCK.unpack_from(answer)[0], back))
            sent = time.monotonic_ns()
    fastest = min(samples, key=lambda sample: sample[2] - sample[0])
    offset = fastest[1] - (fastest[0] + fastest[2]) // 2
    return {
        "round_trip_us": percentiles([(back - sent) / 1e3 for sent, _, back in samples]),
        "there_us": percentiles([(at - offset - sent) / 1e3 for sent, at, _ in samples]),
        "back_us": percentiles([(back - at + offset) / 1e3 for _, at, back in samples]),
    }


def connections(connect: Connect, *, seconds: float = 2.0) -> dict[str, Any]:
    """Connect, receive one byte, close, repeatedly."""
    times: list[float] = []
    begun = time.monotonic_ns()
    end = begun + int(seconds * 1e9)
    now = begun
    while now < end or not times:
        with _begin(connect, GREET, 1, seconds) as connection:
            _exactly(connection, 1)
        times.append((time.monotonic_ns() - now) / 1e3)
        now = time.monotonic_ns()
    rate = len(times) / ((now - begun) / 1e9)
    return {"connections_per_second": rate, "connect_us": percentiles(times)}


def percentiles(values: list[float]) -> dict[str, float]:
    """Percentiles of the values: nearest rank."""
    values = sorted(values)
    last = len(values) - 1

    def at(part: float) -> float:
        return round(values[min(last, int(len(values) * part))], 3)

    return {
        "count": len(values),
        "min": at(0),
        "p50": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "p99.9": at(0.999),
        "max": at(1),
    }


# Run by itself, in a guest


def _kernel_socket(kind: int) -> socket.socket:
    return socket.socket(socket.AF_VSOCK, kind)


def main(words: list[str]) -> int:
    """The command line that the top of this file describes."""
    import argparse

    parser = argparse.ArgumentParser(prog="ends.py")
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("where", nargs="?", default=str(PORT))
    parser.add_argument("--seqpacket", action="store_true")
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--size", type=int, default=1 << 16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--reverse", action="store_true")
    options = parser.parse_args(words)
    kind = socket.SOCK_SEQPACKET if options.seqpacket else socket.SOCK_STREAM
    if options.role == "server":
        with _kernel_socket(kind) as listener:
            listener.bind((socket.VMADDR_CID_ANY, int(options.where)))
            listener.listen(128)
            print("listening", flush=True)
            serve(listener)
        return 0
    cid, _, port = options.where.partition(":")

    def connect() -> socket.socket:
        made = _kernel_socket(kind)
        made.connect((int(cid), int(port or PORT)))
        return made

    seconds = options.seconds
    result = throughput(
        connect, size=options.size, seconds=seconds, flows=options.flows, reverse=options.reverse
    )
    result |= round_trips(connect, seconds=min(seconds, 2))
    result |= connections(connect, seconds=min(seconds, 2))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

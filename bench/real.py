"""Real guests: User-Mode Linux and QEMU, compared with the same guest without a switch.

Both ends run `vsock.perf.ends` in Python, so that the results differ only by the path between them:
the switch, the guest's own vsock loopback (without a device), and, for QEMU, TCP over its user-mode
network. All figures use one boot.
"""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.agents import AgentError
from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row, alternate

__all__ = ["MIB", "PORT", "SIZE", "measure", "real_guests", "told"]

MIB = 1 << 20
Measure = Callable[[], dict[str, Any]]
Connect = Callable[[], socket.socket]

PORT, TCP_PORT = 5201, 5202
SIZE = 64 * 1024
LOOPBACK = 1  # the CID of the guest itself
NETWORK = "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0"
TCP_SERVER = """
listener = socket.create_server(("", {port}))
print("listening", flush=True)
serve(listener)
"""


def real_guests(lab: Lab, plan: Plan) -> list[Row]:
    """Bulk each way and between guests, and round trips."""
    from vsock import testing

    rows: list[Row] = []
    try:
        with _booted(lab, "uml", "qemu") as ((uml, qemu), port):
            rows += _guest_rows(plan, "uml", uml, {})
            qemu.serve_tcp()
            rows += _guest_rows(plan, "qemu", qemu, {"user-mode TCP": partial(_tcp, port)})
            rows += _sibling_rows(plan, qemu, uml)
    except testing.GuestError as error:
        reason = str(error).splitlines()[0]
        rows.append(Row("real guests", "", {"ours": []}, "vsock.testing", {"ours": reason}))
    return rows


class _Guest:
    """A booted guest with a server in it."""

    def __init__(self, guest: Any, cid: int, hybrid: Path) -> None:
        from vsock.perf import ends

        self._guest = guest
        self._source = Path(ends.__file__).read_text()
        self.cid = cid
        self.hybrid = hybrid
        self._serve(self._source, "server", str(PORT))

    def _serve(self, source: str, *arguments: str) -> None:
        server = self._guest.spawn_python(source, *arguments)
        if (said := server.read_line()) != "listening":
            raise AgentError(f"{self._guest.name}: {said}")

    def serve_tcp(self) -> None:
        """A TCP server behind QEMU's user-mode network."""
        self._guest.run(NETWORK)
        definitions = self._source.rpartition('\nif __name__ == "__main__":')[0]
        self._serve(definitions + TCP_SERVER.format(port=TCP_PORT))

    def client(self, cid: int, seconds: float, *flags: str) -> dict[str, Any]:
        """Measures from inside the guest."""
        words = ["client", f"{cid}:{PORT}", "--seconds", str(seconds), *flags]
        done = self._guest.python(self._source, *words, timeout=seconds * 4 + 30)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def connect(self) -> socket.socket:
        """Measures from the host, over the hybrid socket."""
        from vsock import sockets

        return sockets.create_connection(f"hvsock://{self.hybrid}:{PORT}", 20)


@contextmanager
def _booted(lab: Lab, *vmms: str) -> Iterator[tuple[list[_Guest], int]]:
    """Guests at a device of their own; and the host's port of QEMU's TCP server."""
    from vsock import testing

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    network = [
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{TCP_PORT}"),
        *("-device", "virtio-net-pci,netdev=net"),
    ]
    with ExitStack() as stack:
        device = stack.enter_context(lab.make("ours", len(vmms)))
        guests = []
        for vmm, seat in zip(vmms, device.seats, strict=True):
            options = {"extra": network} if vmm == "qemu" else {}
            made = testing.boot(str(seat.socket), vmm, vmm=vmm, **options)  # type: ignore[arg-type]
            guests.append(_Guest(stack.enter_context(made), seat.cid, seat.hybrid))
        yield guests, port


def _guest_rows(plan: Plan, vmm: str, guest: _Guest, others: dict[str, Connect]) -> list[Row]:
    seconds = max(0.5, plan.seconds)
    measures: dict[str, Measure] = {
        "ours": partial(measure, seconds, guest.connect),
        "guest's loopback": partial(_loopback, guest, seconds),
        **{name: partial(measure, seconds, connect) for name, connect in others.items()},
    }
    samples, failures = alternate(told(measures), 2 if plan.quick else 5)
    rows = []
    command = f"vsock.perf.ends, {SIZE} bytes for {seconds} s, guest under {vmm}"
    for figure, unit in (("h2g", "MiB/s"), ("g2h", "MiB/s"), ("ping p50", "µs")):
        values = {name: [sample[figure] for sample in of] for name, of in samples.items()}
        rows.append(Row(f"real {vmm} {figure}", unit, values, command, failures))
    return rows


def told(measures: dict[str, Measure]) -> dict[str, Measure]:
    """The same; an error is a failure of the contender."""
    from vsock.perf.ends import PerfError
    from vsock.testing import GuestError

    def tell(measure: Measure) -> dict[str, Any]:
        try:
            return measure()
        except (PerfError, GuestError) as error:
            raise AgentError(str(error).splitlines()[0]) from error

    return {name: partial(tell, measure) for name, measure in measures.items()}


def measure(seconds: float, connect: Connect) -> dict[str, Any]:
    """Rates both ways, and the median of round trips, with a server of `vsock.perf.ends`."""
    from vsock.perf import ends

    there = ends.throughput(connect, size=SIZE, seconds=seconds)
    back = ends.throughput(connect, size=SIZE, seconds=seconds, reverse=True)
    trips = ends.round_trips(connect, seconds=seconds)
    return {
        "h2g": there["bytes_per_second"] / MIB,
        "g2h": back["bytes_per_second"] / MIB,
        "ping p50": trips["round_trip_us"]["p50"],
    }


def _loopback(guest: _Guest, seconds: float) -> dict[str, Any]:
    result = guest.client(LOOPBACK, seconds)
    rate = result["bytes_per_second"] / MIB
    return {"h2g": rate, "g2h": rate, "ping p50": result["round_trip_us"]["p50"]}


def _tcp(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _sibling_rows(plan: Plan, sender: _Guest, receiver: _Guest) -> list[Row]:
    """From QEMU to User-Mode Linux; without a limit, as nothing else connects them."""
    seconds = max(0.5, plan.seconds)
    measures: dict[str, Measure] = {
        "ours": partial(sender.client, receiver.cid, seconds),
        "guest's loopback": partial(sender.client, LOOPBACK, seconds),
    }
    samples, failures = alternate(told(measures), 2 if plan.quick else 5)
    rates = {name: [s["bytes_per_second"] / MIB for s in of] for name, of in samples.items()}
    times = {name: [s["round_trip_us"]["p50"] for s in of] for name, of in samples.items()}
    command = f"vsock.perf.ends, {SIZE} bytes for {seconds} s, QEMU to User-Mode Linux"
    return [
        Row("real g2g", "MiB/s", rates, command, failures),
        Row("real g2g ping p50", "µs", times, command, failures, is_less_better=True),
    ]

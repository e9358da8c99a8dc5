"""The log of connections: both ends of each connection that opens or is refused (N6, N25)."""

import logging
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vsock
from vsock.guest import Guest
from vsock.switch import Switch

DEADLINE = 20
HERE = rf'pid={os.getpid()} uid={os.geteuid()} program=".+"'

Wait = Callable[[str], str]


@pytest.fixture
def wait(caplog: pytest.LogCaptureFixture) -> Wait:
    """Waits for a line of the log, at level debug, that matches."""
    caplog.set_level(logging.DEBUG, "vsock.switch")

    def until(pattern: str) -> str:
        deadline = time.monotonic() + DEADLINE
        while True:
            records = [*caplog.get_records("setup"), *caplog.get_records("call")]
            lines = [record.getMessage() for record in records]
            found = [line for line in lines if re.fullmatch(pattern, line)]
            if found:
                return found[0]
            assert time.monotonic() < deadline, f"no line {pattern} in\n" + "\n".join(lines)
            time.sleep(0.01)

    return until


@pytest.fixture
def beta(wait: Wait, switch: Switch) -> Iterator[Guest]:
    """The guest beta, which shares a group with alpha."""
    with Guest(switch.socket_path("beta")) as joined:
        yield joined


def refused(connect: Callable[[], socket.socket]) -> None:
    """Tries a connection that must fail."""
    with pytest.raises((vsock.ConnectRefused, vsock.NoSuchGuest)):
        connect().close()


def test_host_to_guest(wait: Wait, switch: Switch, guest: Guest) -> None:
    """With the program that connected; a refusal with the guest's answer."""
    with guest.create_server(5000), vsock.create_connection("alpha:5000"):
        wait(rf"flow: guest=alpha cid=3 from=2:\d+\(host\) to=3:5000\(alpha\) type=stream {HERE}")
    refused(lambda: vsock.create_connection("alpha:5001", type=socket.SOCK_SEQPACKET))
    wait(
        r"flow-refused: guest=alpha cid=3 from=2:\d+\(host\) to=3:5001\(alpha\) type=seqpacket "
        rf"{HERE}: nobody accepts there"
    )
    refused(lambda: vsock.create_connection((77, 5000)))
    wait(
        rf"flow-refused: guest=host cid=2 from=2:\d+\(host\) to=77:5000 type=stream {HERE}: no such guest"
    )


def test_guest_to_host(wait: Wait, switch: Switch, guest: Guest) -> None:
    """With the program that listens, or the reason of the refusal."""
    with vsock.create_server(7000) as server:
        with guest.create_connection("host:7000"):
            to = r"from=3:\d+\(alpha\) to=2:7000\(host\) type=stream"
            wait(rf"flow: guest=alpha cid=3 {to} {HERE}")
        server.accept()[0].close()
        refused(lambda: guest.create_connection("host:7000", type=socket.SOCK_SEQPACKET))
        wait("flow-refused: .* type=seqpacket: the listener has another socket type")
    refused(lambda: guest.create_connection("host:7001"))
    to = r"from=3:\d+\(alpha\) to=2:7001\(host\) type=stream"
    wait(rf"flow-refused: guest=alpha cid=3 {to}: nobody listens there")


def test_full_queue(wait: Wait, switch: Switch, guest: Guest) -> None:
    """The reason of a full queue differs from that of a missing listener."""
    with vsock.create_server(7000, backlog=0), guest.create_connection("host:7000"):
        refused(lambda: guest.create_connection("host:7000"))
        wait(r"flow-refused: .* to=2:7000\(host\) type=stream: its queue is full")


def test_guest_to_guest(wait: Wait, switch: Switch, guest: Guest, beta: Guest) -> None:
    """With both names, and whether the guest or the switch refused."""
    between = r"guest=alpha cid=3 from=3:\d+\(alpha\) to="
    with beta.create_server(5000), guest.create_connection((4, 5000)):
        wait(rf"flow: {between}4:5000\(beta\) type=stream")
    refused(lambda: guest.create_connection((4, 5001)))
    wait(rf"flow-refused: {between}4:5001\(beta\) type=stream: nobody accepts there")
    refused(lambda: guest.create_connection((5, 5000)))
    wait(rf"flow-refused: {between}5:5000\(gamma\) type=stream: they share no group")
    refused(lambda: guest.create_connection((9, 5000)))
    wait(rf"flow-refused: {between}9:5000 type=stream: no such guest")


def test_hybrid(wait: Wait, switch: Switch, runtime_dir: Path) -> None:
    """Connections through hybrid sockets are marked, in both directions, with their program."""
    switch.add_guest("delta", 6, hybrid=True)
    path = switch.hybrid_path("delta")
    with Guest(switch.socket_path("delta")) as delta:
        with delta.create_server(5000), socket.socket(socket.AF_UNIX) as program:
            program.connect(str(path))
            program.sendall(b"CONNECT 5000\n")
            to = r"from=2:\d+\(host\) to=6:5000\(delta\) type=stream"
            wait(rf"flow: guest=delta cid=6 {to} {HERE} by=hybrid")
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(path))
            program.sendall(b"CONNECT 5001\n")
            wait(rf"flow-refused: .*to=6:5001.* {HERE} by=hybrid: nobody accepts there")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{path}_7000")
            listener.listen()
            with delta.create_connection("host:7000"):
                to = r"from=6:\d+\(delta\) to=2:7000\(host\) type=stream"
                wait(rf"flow: guest=delta cid=6 {to} {HERE} by=hybrid")


def test_local(wait: Wait, switch: Switch) -> None:
    """A connection between two host programs is logged once, with the program that connected."""
    with vsock.create_server(7000), vsock.create_connection("local:7000"):
        wait(rf"flow: .* to=1:7000 type=stream {HERE}")
    refused(lambda: vsock.create_connection("local:7000"))
    wait(rf"flow-refused: .* to=1:7000 type=stream {HERE}: nobody accepts there")


def test_usual_level_says_nothing_of_connections(
    caplog: pytest.LogCaptureFixture, runtime_dir: Path
) -> None:
    """At level info the switch does not make these records."""
    caplog.set_level(logging.INFO, "vsock.switch")
    with Switch({"alpha": 3}) as switch, Guest(switch.socket_path("alpha")) as guest:
        with guest.create_server(5000), vsock.create_connection("alpha:5000"):
            pass
        refused(lambda: guest.create_connection("host:7001"))
        caplog.set_level(logging.DEBUG, "vsock.switch")
    assert not [record for record in caplog.records if record.getMessage().startswith("flow")]


def test_storm_is_cut_and_counted(wait: Wait, switch: Switch, runtime_dir: Path) -> None:
    """S22: nobody can fill a disk; the number of lines left out is logged, also when no more lines follow."""
    for _ in range(300):
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(runtime_dir / "stream"))
            program.sendall(b"?" * 32)
            while program.recv(100):
                pass
    line = wait(r"bad-request: .*?(\d+) (before it were|more were) not written\)?")
    left_out = int(re.findall(r"(\d+) (?:before|more)", line)[0])
    assert 0 < left_out <= 300 - 64


def test_driver_that_is_up_is_said(wait: Wait, switch: Switch, guest: Guest) -> None:
    """N25: a guest's change to `running`, once for each time."""
    wait("running: guest=alpha cid=3 its driver is up")


def test_memory_that_is_not_shared_is_said(wait: Wait, switch: Switch) -> None:
    """N25: such a QEMU sends the features but no memory; the log says what is missing."""
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(switch.socket_path("gamma")))
        get_features, set_features, version_1 = 1, 2, 1 << 32
        front_end.sendall(struct.pack("=3I", get_features, 1, 0))
        front_end.sendall(struct.pack("=3IQ", set_features, 1, 8, version_1))
        wait("no-memory: guest=gamma cid=5 its driver is up, but .* shares no memory .*share=on.*")

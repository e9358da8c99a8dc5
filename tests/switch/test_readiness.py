"""Guests say that they are ready; some say too much, too slowly, or what nobody understands."""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vsock.control.client import ControlClient
from vsock.control.model import LONGEST_TEXT, NOTIFY_PORT, GuestRecord
from vsock.guest import Guest
from vsock.sockets import create_connection, create_server
from vsock.switch import Switch, readiness
from vsock.switch.readiness import Message, NotifyServer, Readiness
from vsock.transports import SwitchTransport

SECONDS = 10


def until(what: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def connect(guest: Guest) -> socket.socket:
    """A connection on which a guest can say one message."""
    connection = guest.create_connection((2, NOTIFY_PORT), timeout=SECONDS)
    connection.settimeout(SECONDS)
    return connection


def say(guest: Guest, message: bytes) -> bool:
    """Say one message as systemd does; false if the switch has certainly not heard it."""
    with connect(guest) as connection:
        try:
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b""
        except OSError:
            return False


_numbers = itertools.count()


def is_heard(switch: Switch, guest: Guest) -> bool:
    """Whether the switch hears what the guest `alpha` says now."""
    status = f"number {next(_numbers)}"
    say(guest, f"STATUS={status}".encode())
    return switch.guest("alpha").status == status


@pytest.fixture
def beta(switch: Switch) -> Iterator[Guest]:
    """The guest `beta` of `switch`, in this process."""
    with Guest(switch.socket_path("beta")) as joined:
        yield joined


def said(record: GuestRecord) -> tuple[bool | None, str, bool]:
    """What a guest says of itself."""
    return record.ready, record.status, record.ready_for is not None


def test_guest_says_that_it_is_ready(switch: Switch, guest: Guest, beta: Guest) -> None:
    """In the order of a boot; what one guest says is said of no other."""
    client = ControlClient(switch.runtime_dir)
    assert said(client.guest("alpha")) == (None, "", False)
    assert say(guest, b"X_SYSTEMD_HOSTNAME=alpha\n")
    assert said(client.guest("alpha")) == (False, "", False)
    assert say(guest, b"STATUS=Starting up.")
    assert said(client.guest("alpha")) == (False, "Starting up.", False)
    assert say(guest, b"READY=1\nSTATUS=Ready.\n")
    assert said(client.guest("alpha")) == (True, "Ready.", True)
    assert say(guest, b"RELOADING=1\nMONOTONIC_USEC=1\n")
    assert said(client.guest("alpha")) == (True, "Ready.", True)
    assert say(guest, b"STOPPING=1\nSTATUS=Shutting down.")
    assert said(client.guest("alpha")) == (False, "Shutting down.", False)
    assert [said(client.guest(name)) for name in ("beta", "gamma")] == [(None, "", False)] * 2
    assert say(beta, b"READY=1")
    assert said(client.guest("beta")) == (True, "", True)


def test_ready_for_begins_with_the_first_ready(switch: Switch, guest: Guest) -> None:
    """systemd says it again after each `systemctl daemon-reload`."""
    assert say(guest, b"READY=1")
    until(lambda: (switch.guest("alpha").ready_for or 0) > 0.02)
    assert say(guest, b"READY=1")
    assert (switch.guest("alpha").ready_for or 0) > 0.02


def test_what_was_said_before_a_boot_is_over(switch: Switch) -> None:
    """A guest that has gone, or came again, has said nothing; nor has another one of its name."""
    for _ in range(3):
        with Guest(switch.socket_path("alpha")) as guest:
            until(lambda: switch.guest("alpha").state == "running")
            assert switch.guest("alpha").ready is None
            assert say(guest, b"READY=1\nSTATUS=up")
            assert switch.guest("alpha").ready
        until(lambda: switch.guest("alpha").state == "waiting")
        assert said(switch.guest("alpha")) == (None, "", False)
    switch.remove_guest("alpha")
    switch.add_guest("alpha", 3)
    for _ in range(3):
        with Guest(switch.socket_path("alpha")):
            until(lambda: switch.guest("alpha").state == "running")
            assert switch.guest("alpha").ready is None
        until(lambda: switch.guest("alpha").state == "waiting")


def test_guest_with_another_cid_is_still_ready(switch: Switch, guest: Guest) -> None:
    """What it said is known by its name."""
    assert say(guest, b"READY=1")
    switch.set_guest_cid("alpha", 33)
    assert switch.guest("alpha").ready
    assert say(guest, b"STATUS=moved")
    assert said(switch.guest("alpha")) == (True, "moved", True)


def test_a_switch_without_a_control_api_takes_no_port(switch: Switch, beta: Guest) -> None:
    """Somebody's program that has a switch in it has its ports for itself."""
    del beta
    directory = switch.runtime_dir / "second"
    with Switch({"alpha": 3}, runtime_dir=directory) as second:
        assert second.listeners() == []
    assert [(it.port, it.cid) for it in switch.listeners()] == [(NOTIFY_PORT, 0xFFFFFFFF)]


def test_port_that_a_program_has_is_left_to_it(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The switch is of use without it, and says so."""
    heard: list[int] = []

    async def try_to_hear(transport: SwitchTransport) -> None:
        async with NotifyServer(transport, lambda cid, _: heard.append(cid)):
            pass

    with (
        Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch,
        Guest(switch.socket_path("alpha")) as guest,
        create_server(NOTIFY_PORT, transport=switch.transport) as server,
    ):
        server.settimeout(SECONDS)
        asyncio.run(try_to_hear(switch.transport))
        with connect(guest), server.accept()[0]:
            assert heard == []
    assert "no guest can say that it is ready" in caplog.text


def test_host_programs_are_not_heard(switch: Switch, guest: Guest) -> None:
    """They are no guests; the message of one is not read."""
    with create_connection((2, NOTIFY_PORT), SECONDS, transport=switch.transport) as connection:
        # It is closed at once: neither is a message waited for, nor its end.
        assert connection.recv(1) == b""
    assert say(guest, b"READY=1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", Message()),
        (b"READY=1", Message(ready=True)),
        (b"READY=0\nREADY=11\nready=1\n READY=1", Message()),
        (b"STOPPING=1\nREADY=1", Message(ready=True)),
        (b"STATUS=", Message(status="")),
        (b"STATUS=a\nSTATUS=b=c", Message(status="b=c")),
        (b"STATUS=\xff\xfe\x00", Message(status="\ufffd\ufffd?")),
        (b"STATUS=\x1b]0;x\x07\r\x9b\xe2\x80\xae", Message(status="?]0;x??\ufffd?")),
        (b"STATUS=" + b"x" * 5000, Message(status="x" * LONGEST_TEXT)),
        (b"\n\n=\n=1\nSTATUS\n\xff=\xff", Message()),
    ],
)
def test_only_what_is_understood_is_taken(data: bytes, message: Message) -> None:
    """And nothing in it can do more to a terminal than be shown."""
    assert Message.read(data) == message


def test_what_a_removed_guest_said_is_forgotten() -> None:
    """The first start of the next one of its name has the same number."""
    heard = Readiness()
    heard.hear("alpha", 1, Message(ready=True))
    heard.forget("alpha")
    heard.forget("alpha")
    assert heard.of("alpha", 1) is None


def test_long_message_is_not_heard(switch: Switch, guest: Guest) -> None:
    """One of the longest is."""
    longest = b"READY=1\n".ljust(readiness.MOST_BYTES, b"x")
    say(guest, longest + b"x")
    assert switch.guest("alpha").ready is None
    assert say(guest, longest)
    assert switch.guest("alpha").ready


def test_message_without_an_end_is_not_heard(
    switch: Switch, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest may not keep a connection for ever."""
    monkeypatch.setattr(readiness, "PATIENCE", 0.2)
    with connect(guest) as connection:
        connection.sendall(b"READY=1")
        assert connection.recv(1) == b""
    assert switch.guest("alpha").ready is None


def test_message_of_a_guest_that_closes_at_once_is_heard(switch: Switch, guest: Guest) -> None:
    """As systemd did before version 257."""
    with connect(guest) as connection:
        connection.sendall(b"READY=1")
    until(lambda: switch.guest("alpha").ready is True)


def test_guest_with_many_connections_takes_no_place_of_another(
    switch: Switch, guest: Guest, beta: Guest
) -> None:
    """Nor of its own, when it closes them."""
    with ExitStack() as held:
        for _ in range(readiness.MOST_CONNECTIONS):
            held.enter_context(connect(guest)).sendall(b"STATUS=held")
        until(lambda: not is_heard(switch, guest))
        assert say(beta, b"READY=1")
        assert switch.guest("beta").ready
    until(lambda: is_heard(switch, guest))


def test_guest_that_says_too_much_is_not_heard_for_a_while(
    switch: Switch, guest: Guest, beta: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once; the API and another guest do not notice."""
    client = ControlClient(switch.runtime_dir)
    with caplog.at_level(logging.WARNING, "vsock.switch"):
        heard = 0
        while is_heard(switch, guest):
            heard += 1
            assert heard < 5000
        for _ in range(50):
            say(guest, b"READY=1")
        assert say(beta, b"READY=1")
        assert client.guest("beta").ready
    assert heard > 200
    (line,) = [line.getMessage() for line in caplog.records if "too much" in line.getMessage()]
    assert line == "notify: cid=3 says too much, and is not heard for a while"
    until(lambda: is_heard(switch, guest))

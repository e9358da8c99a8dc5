"""Whatever may not begin is refused for a reason, and counted by it."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import vsock
from vsock.guest import Guest
from vsock.switch import Switch

Provoke = Callable[[Guest], object]


def full_queue(guest: Guest) -> None:
    """Two connections to a listener that takes one, and accepts none."""
    with vsock.create_server(7000, backlog=0), guest.create_connection("host:7000"):
        guest.create_connection("host:7000")


def other_type(guest: Guest) -> None:
    """A message socket asks a listener for streams."""
    with vsock.create_server(7000):
        guest.create_connection("host:7000", type=socket.SOCK_SEQPACKET)


def port_twice(guest: Guest) -> None:
    """Two sockets are bound to one port."""
    with vsock.socket() as first, vsock.socket() as second:
        first.bind((vsock.CID_ANY, 7000))
        second.bind((vsock.CID_ANY, 7000))


def foreign_cid(guest: Guest) -> None:
    """A socket is bound to a CID that is not the host's."""
    with vsock.socket() as sock:
        sock.bind((77, 7000))


def datagram_to_nobody(guest: Guest) -> None:
    """A datagram goes to a port of the host at which no socket is bound."""
    with vsock.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((vsock.CID_ANY, 7000))
        sock.sendto(b"hello", (2, 7001))


@pytest.mark.parametrize(
    ("provoke", "reason"),
    [
        (lambda guest: vsock.create_connection((77, 5000)), "no_route"),
        (lambda guest: vsock.create_connection((0, 5000)), "no_hypervisor"),
        (
            lambda guest: vsock.create_connection((5, 1), type=socket.SOCK_SEQPACKET),
            "type_not_known",
        ),
        (lambda guest: vsock.create_connection("local:7001"), "no_listener"),
        (lambda guest: guest.create_connection("host:7001"), "no_listener"),
        (lambda guest: guest.create_connection((5, 5000)), "no_shared_group"),
        (lambda guest: guest.create_connection((9, 5000)), "no_route"),
        (full_queue, "queue_full"),
        (other_type, "listener_type"),
        (port_twice, "port_in_use"),
        (foreign_cid, "not_local"),
        (datagram_to_nobody, "no_listener"),
    ],
)
def test_refusal_is_counted_by_its_reason(
    switch: Switch, guest: Guest, provoke: Provoke, reason: str
) -> None:
    """Once, and no other reason with it."""
    with pytest.raises(OSError):  # noqa: PT011 - the reason is what is checked
        provoke(guest)
    assert refusals(switch) == {reason: 1}


def test_hybrid_socket_that_nobody_serves_is_a_reason_of_its_own(switch: Switch) -> None:
    """A guest with a hybrid socket asks the host for a port that neither kind of listener has."""
    switch.add_guest("delta", 6, hybrid=True)
    with Guest(switch.socket_path("delta")) as delta, pytest.raises(vsock.ConnectRefused):
        delta.create_connection("host:7001")
    assert refusals(switch) == {"no_hybrid_socket": 1}


def test_what_may_begin_is_not_counted(switch: Switch, guest: Guest, runtime_dir: Path) -> None:
    """Connections in both directions, and a port."""
    with vsock.create_server(7000), guest.create_connection("host:7000"):
        pass
    with guest.create_server(5000), vsock.create_connection("alpha:5000"):
        pass
    assert refusals(switch) == {}


def refusals(switch: Switch) -> dict[str, int]:
    """How many attempts were refused, by reason."""
    counters = switch.info().counters.items()
    return {
        name.removeprefix("refused_"): count
        for name, count in counters
        if name.startswith("refused_") and count
    }

"""A switch with guests that reboot, pause, lose their driver or are killed."""

import time
from collections.abc import Callable
from contextlib import closing

import pytest

from vsock import sockets
from vsock.demo.nets import STREAM
from vsock.demo.places import LinuxPlace, ProcessPlace, run_pair
from vsock.demo.programs import echo_server, ping, receive_bytes, send_bytes
from vsock.testing import QemuGuest
from vsock.testing.plugin import KINDS, SharedGuests
from vsock.transports import SwitchTransport

GetPlace = Callable[[str], LinuxPlace]

DEADLINE = 60
BOOT_SECONDS = 240
"""Deadline in seconds; an emulated guest boots in 10 s on an otherwise idle machine."""
DRIVER = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"

every_kind = pytest.mark.parametrize("kind", KINDS)
qemu_kinds = pytest.mark.parametrize("kind", ["qemu-6.1", "qemu-6.12"])


def talks(host: ProcessPlace, guest: LinuxPlace, port: int) -> None:
    """Check connections between host and guest in both directions.

    At other ports: an echo whose connection has just ended may still have its own.
    """
    for client, server, at in ((host, guest, port + 5_000), (guest, host, port + 10_000)):
        run_pair(server, (echo_server, at, STREAM, 1), client, (ping, server.cid, at, 20))


def echo_for_ever(port: int) -> None:
    """In the guest: echo one connection until the guest itself ends."""
    import socket

    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    print("listening", flush=True)
    connection = listener.accept()[0]
    while data := connection.recv(65536):
        connection.sendall(data)


def open_echo(guest: LinuxPlace, transport: SwitchTransport, port: int) -> sockets.socket:
    """A connection to an echo server in the guest, used once."""
    program = guest.guest.spawn_call(echo_for_ever, port)
    assert program.read_line() == "listening"
    connection = sockets.create_connection((guest.cid, port), transport=transport)
    assert isinstance(connection, sockets.socket)
    connection.settimeout(DEADLINE)
    connection.sendall(b"before")
    assert connection.recv(100) == b"before"
    return connection


def ends_visibly(connection: sockets.socket) -> bool:
    """Whether the connection ends within the deadline; a reset is an end too."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.timeout(2 * BOOT_SECONDS)
@every_kind
def test_guest_that_reboots_ends_its_connections_and_comes_back(
    host: ProcessPlace, place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """The guest sends no packets about it: the switch must notice that the device was stopped."""
    guest = place(kind)
    with closing(open_echo(guest, transport, port)) as connection:
        guest.guest.reboot(BOOT_SECONDS)
        assert ends_visibly(connection)
    talks(host, guest, port)


@pytest.mark.timeout(2 * BOOT_SECONDS)
@qemu_kinds
def test_guest_that_is_reset_ends_its_connections_and_comes_back(
    host: ProcessPlace, place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """QMP system_reset: the same vhost-user messages, without any action of the guest's kernel."""
    guest = place(kind)
    assert isinstance(guest.guest, QemuGuest)
    with closing(open_echo(guest, transport, port)) as connection:
        guest.guest.reset(BOOT_SECONDS)
        assert ends_visibly(connection)
    talks(host, guest, port)


@every_kind
def test_driver_unbound_and_bound_again_works_as_before(
    host: ProcessPlace, place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """The device stays attached to the VMM, but has no driver for a while."""
    guest = place(kind)
    device = guest.guest.run(f"cd {DRIVER} && ls -d virtio*").stdout.strip()
    with closing(open_echo(guest, transport, port)) as connection:
        guest.guest.run(f"echo {device} > {DRIVER}/unbind")
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            sockets.create_connection((guest.cid, port), 3, transport=transport).close()
        assert time.monotonic() - begun < 5, "an unreachable guest must not hang anybody"
        guest.guest.run(f"echo {device} > {DRIVER}/bind")
        assert ends_visibly(connection)
    talks(host, guest, port)


@qemu_kinds
def test_paused_guest_keeps_its_connections(
    host: ProcessPlace, place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """QMP stop stops the virtqueues, and cont starts them at the same indices."""
    guest = place(kind)
    assert isinstance(guest.guest, QemuGuest)
    with closing(open_echo(guest, transport, port)) as connection:
        guest.guest.pause()
        connection.sendall(b"while paused")
        guest.guest.resume()
        got = b""
        while len(got) < len(b"while paused"):
            piece = connection.recv(100)
            assert piece, "the connection did not survive the pause"
            got += piece
        assert got == b"while paused"
    talks(host, guest, port)


@qemu_kinds
def test_guest_paused_in_a_transfer_loses_nothing(
    host: ProcessPlace, place: GetPlace, port: int, kind: str
) -> None:
    """Stop and cont several times while packets are in all virtqueues."""
    guest = place(kind)
    assert isinstance(guest.guest, QemuGuest)
    size = 64 << 20
    receiving = guest.start(receive_bytes, port, size)
    assert receiving.read_line() == "listening"
    sending = host.start(send_bytes, guest.cid, port, size)
    for _ in range(5):
        guest.guest.pause()
        guest.guest.resume()
    assert sending.result(60)["checksum"] == receiving.result(60)["checksum"]


@pytest.mark.parametrize("kind", ["qemu-6.1", "uml"])
def test_front_end_killed_ends_its_connections_and_another_may_come(
    host: ProcessPlace,
    place: GetPlace,
    transport: SwitchTransport,
    linux_guests: SharedGuests,
    port: int,
    kind: str,
) -> None:
    """SIGKILL of the VMM: no vhost-user message, only the end of the socket."""
    guest = place(kind)
    other = place("qemu-6.12")
    with (
        closing(open_echo(guest, transport, port)) as connection,
        closing(open_echo(other, transport, port)) as of_other,
    ):
        guest.guest.kill()
        assert ends_visibly(connection)
        of_other.sendall(b"still here")
        assert of_other.recv(100) == b"still here"
        begun = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            sockets.create_connection((guest.cid, port), 3, transport=transport).close()
        assert time.monotonic() - begun < 5
    talks(host, place(kind), port)

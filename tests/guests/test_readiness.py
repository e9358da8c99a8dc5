"""What a VM has said of itself, and its boots."""

from collections.abc import Callable

from tests.guests.conftest import SwitchProcess

from vsock.control.client import ControlClient
from vsock.control.model import NOTIFY_PORT
from vsock.demo.places import LinuxPlace
from vsock.testing.blocking import QemuGuest


def say(port: int, message: str) -> str:
    """In the guest: say one message to the host, as systemd does."""
    import socket

    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection:
        connection.connect((socket.VMADDR_CID_HOST, port))
        connection.sendall(message.encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1).decode()


def test_guest_that_is_reset_has_said_nothing(
    place: Callable[[str], LinuxPlace], vsock_switch: SwitchProcess
) -> None:
    """Its VMM stays attached all the time: that its driver comes up again says that it has booted."""
    guest, client = place("qemu-6.1").guest, ControlClient(vsock_switch.runtime_dir)
    assert isinstance(guest, QemuGuest)
    assert guest.call(say, NOTIFY_PORT, "READY=1\nSTATUS=first") == ""
    before = client.guest("qemu-6.1")
    assert (before.ready, before.status) == (True, "first")
    guest.reset()
    after = client.guest("qemu-6.1")
    assert (after.state, after.pid) == ("running", before.pid)
    assert (after.ready, after.status, after.ready_for) == (None, "", None)
    assert guest.call(say, NOTIFY_PORT, "STATUS=second") == ""
    last = client.guest("qemu-6.1")
    assert (last.ready, last.status) == (False, "second")

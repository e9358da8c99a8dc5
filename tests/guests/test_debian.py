"""A stock Debian 13 guest, with nothing of ours in it."""

import time

import pytest
from tests.guests.conftest import DEBIAN_CID

from vsock import sockets
from vsock.errors import VsockError
from vsock.testing.debian import DebianGuest
from vsock.transports import SwitchTransport

BOOT_SECONDS = 150


@pytest.mark.timeout(200)
def test_stock_debian_has_sshd_on_vsock(debian: DebianGuest, transport: SwitchTransport) -> None:
    """systemd's ssh generator finds the vsock device, and has sshd listen on port 22."""
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            connection = sockets.create_connection((DEBIAN_CID, 22), transport=transport)
            break
        except VsockError:
            assert time.monotonic() < deadline, debian.console_tail()
            time.sleep(0.2)
    with connection:
        connection.settimeout(30)
        assert connection.recv(64).startswith(b"SSH-2.0-OpenSSH_")

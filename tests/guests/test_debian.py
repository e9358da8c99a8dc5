"""A stock Debian 13 guest, with nothing of ours in it: it is heard, and can be reached."""

import asyncio
import time

import pytest
from tests.guests.conftest import SwitchProcess

from vsock import sockets
from vsock.control.client import ControlClient
from vsock.testing.debian import DebianGuest
from vsock.testing.plugin import DEBIAN, DEBIAN_CID
from vsock.transports import SwitchTransport

SECONDS = 30


@pytest.fixture
def client(vsock_switch: SwitchProcess) -> ControlClient:
    """A client of the switch's control API."""
    return ControlClient(vsock_switch.runtime_dir)


@pytest.mark.usefixtures("debian")
def test_stock_debian_says_that_it_is_ready(
    vsock_switch: SwitchProcess, client: ControlClient
) -> None:
    """systemd says so at the end of its boot, by the credential of `vsock qemu-args --notify`."""
    record = client.guest(DEBIAN)
    assert (record.state, record.ready, record.status) == ("running", True, "Ready.")
    assert record.ready_for is not None
    done = vsock_switch.run("wait", DEBIAN, "--timeout", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{DEBIAN} is ready after ")
    assert f" {DEBIAN_CID}  ready " in vsock_switch.run("guest", "ls").stdout


@pytest.mark.usefixtures("debian")
def test_stock_debian_has_sshd_on_vsock(
    vsock_switch: SwitchProcess, transport: SwitchTransport
) -> None:
    """systemd's ssh generator finds the vsock device, and has sshd listen on port 22."""
    done = vsock_switch.run("wait", DEBIAN, "--port", "22", "--timeout", str(SECONDS))
    assert done.returncode == 0, done.stderr
    with sockets.create_connection((DEBIAN_CID, 22), transport=transport) as connection:
        connection.settimeout(SECONDS)
        assert connection.recv(64).startswith(b"SSH-2.0-OpenSSH_")


def test_paused_guest_is_ready_when_it_goes_on(debian: DebianGuest, client: ControlClient) -> None:
    """While it is paused nobody is served, so it does not count as ready; a pause is no boot."""
    before = client.guest(DEBIAN).ready_for
    assert before is not None
    debian.qmp("stop")
    try:
        until_ready(client, None)
    finally:
        debian.qmp("cont")
    until_ready(client, True)
    assert (client.guest(DEBIAN).ready_for or 0) > before


def until_ready(client: ControlClient, wanted: bool | None) -> None:
    """Wait until the record of the guest has this in `ready`."""
    deadline = time.monotonic() + SECONDS
    while client.guest(DEBIAN).ready is not wanted:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_session_of_the_plugin_is_blocking_or_asynchronous(
    debian_session,
):
    """As users' tests have it: the switch, the key and the guest are those of the fixtures."""
    with debian_session() as guest:
        assert guest.run("uname -s", check=True).stdout == "Linux\n"

    async def main():
        async with debian_session(timeout=60) as session:
            return (await session.run("id -un", check=True)).stdout

    assert asyncio.run(main()) == "root\n"

"""Fixtures: an SSH server in the guest `alpha`, which lets this test's user in."""

from collections.abc import Iterator

import pytest
from tests.ssh.server import SshServer

from vsock.guest import Guest
from vsock.ssh.identity import Identity


@pytest.fixture
def sshd(guest: Guest) -> Iterator[SshServer]:
    """The server."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running

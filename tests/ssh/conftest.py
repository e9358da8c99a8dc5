"""Fixtures: an SSH server in the guest `alpha`, which lets this test's user in, and folders to copy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ssh.server import SshServer

from vsock.guest import Guest
from vsock.ssh.identity import Identity


@pytest.fixture
def sshd(guest: Guest) -> Iterator[SshServer]:
    """The server."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of the host."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder of the guest."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"

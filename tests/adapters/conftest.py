"""Fixtures: HTTP servers in the guest `alpha`, with and without TLS."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.adapters.web import WebServer, make_certificate

from vsock.guest import Guest

PORT = 8080
TLS_PORT = 8443


@pytest.fixture
def web(guest: Guest) -> Iterator[WebServer]:
    """A server on port 8080."""
    with WebServer(guest.create_server(PORT)) as server:
        yield server


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for the name `alpha`, with its key."""
    return make_certificate(tmp_path / "alpha.pem", "alpha")


@pytest.fixture
def tls_web(guest: Guest, certificate: Path) -> Iterator[WebServer]:
    """A server on port 8443 that has `certificate`."""
    with WebServer(guest.create_server(TLS_PORT), certificate) as server:
        yield server

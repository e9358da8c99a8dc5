"""The Docker SDK over vsock: a real client, and a server that gives the few answers of a daemon that it needs."""

import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
import docker.errors
import pytest

from vsock.adapters.unix_socket import client_path

PORT = 2375
ID = "0123456789abcdef"
CONTAINER = {"Id": ID, "Name": "/web", "State": {"Status": "running"}, "Config": {"Tty": False}}
ANSWERS = {
    "/version": {"ApiVersion": "1.47", "Version": "27.5.1"},
    "/containers/json": [{"Id": ID}],
    f"/containers/{ID}/json": CONTAINER,
    "/containers/web/json": CONTAINER,
}
LINES = [b"one\n", b"two\n"]


class Daemon(BaseHTTPRequestHandler):
    """The engine API, as far as these tests go."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with and without the version of the API in the path."""
        path = self.path.partition("?")[0].removeprefix("/v1.47")
        if path == "/_ping":
            self._answer(200, b"OK", "text/plain")
        elif path == f"/containers/{ID}/logs":
            # A stream of frames: which of stdout and stderr, and how long.
            frames = (struct.pack(">BxxxL", 1, len(line)) + line for line in LINES)
            self._answer(200, b"".join(frames), "application/vnd.docker.raw-stream")
        elif path in ANSWERS:
            self._answer(200, json.dumps(ANSWERS[path]).encode(), "application/json")
        else:
            self._answer(404, b'{"message": "no such thing"}', "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def daemon(guest):
    """It listens in the guest."""
    with (
        guest.create_server(PORT) as listener,
        ThreadingHTTPServer(("", 0), Daemon, bind_and_activate=False) as server,
    ):
        server.socket.close()
        server.socket = listener
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def client(daemon):
    """The SDK, which asks for the version at once."""
    with client_path(f"alpha:{PORT}") as path:
        made = docker.DockerClient(base_url=f"unix://{path}", timeout=30)
        yield made
        made.close()


def test_version_and_ping(client):
    """The first two things that everybody asks."""
    assert client.ping()
    assert client.version()["Version"] == "27.5.1"
    assert client.api.api_version == "1.47"


def test_containers_and_their_logs(client):
    """Objects, a stream, and an error of the daemon."""
    (container,) = client.containers.list()
    assert (container.name, container.status) == ("web", "running")
    assert container.logs() == b"".join(LINES)
    with pytest.raises(docker.errors.NotFound, match="no such thing"):
        client.containers.get("none")


def test_guest_without_a_daemon_is_an_error_of_the_sdk(guest, caplog):
    """The log says which address refused."""
    with client_path(f"alpha:{PORT}") as path, pytest.raises(docker.errors.DockerException):
        docker.DockerClient(base_url=f"unix://{path}", timeout=30)
    assert f"alpha:{PORT}" in caplog.text

"""An HTTP server, in a thread, at any listener: the other end of the tests of HTTP clients.

==================  =====================================================================
``GET /…``          the path, the Host header and which connection it was, as JSON
``POST /…``         the body, as it came
``GET /silent``     nothing, until the server ends
``GET /moved``      a redirect to ``/there``
``GET /last``       the same as others, and then the connection ends without a word
==================  =====================================================================
"""

import datetime
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class WebServer:
    """Serves at `listener` until the end of the block; with a `certificate`, over TLS."""

    def __init__(self, listener: Any, certificate: Path | None = None) -> None:
        self._listener = listener
        self._server = _Server(listener, certificate)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def connections(self) -> int:
        """How many have come so far."""
        return self._server.connections

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, listener: Any, certificate: Path | None) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.connections = 0
        self.open: set[Any] = set()
        self.ended = threading.Event()
        self._context: ssl.SSLContext | None = None
        if certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(certificate)

    def get_request(self) -> Any:
        connection, peer = self.socket.accept()
        self.connections += 1
        if self._context:
            connection = self._context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self.open.add(connection)
        return connection, peer

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended by itself
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that hang up or fail a handshake are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.number = self.server.connections

    def do_GET(self) -> None:
        if self.path == "/silent":
            self.server.ended.wait(60)
            self.close_connection = True
        elif self.path == "/moved":
            self._answer(302, b"", ("Location", "/there"))
        else:
            said = {"path": self.path, "host": self.headers["Host"], "connection": self.number}
            self._answer(200, json.dumps(said).encode(), ("Content-Type", "application/json"))
            self.close_connection = self.path == "/last"

    def do_POST(self) -> None:
        self._answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def make_certificate(path: Path, name: str) -> Path:
    """Write a self-signed certificate for `name` and its key, and return the path."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path

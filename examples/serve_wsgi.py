"""A WSGI application on a vsock port, with the standard library's server or with gunicorn.

    python3 serve_wsgi.py 8080
    vsock guest run alpha python3 http_over_vsock.py get host:8080 /

    gunicorn -c serve_wsgi.py serve_wsgi:app     # the same on port 8081

This file is gunicorn's configuration too. gunicorn listens at a Unix socket only; a forwarder leads there.
"""

import sys
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse

import vsock
from vsock.forwarding import BlockingForwarder
from vsock.transports.unix import UnixAddress

bind = "unix:gunicorn.sock"
forwarder = BlockingForwarder(vsock.Address(vsock.CID_ANY, 8081), UnixAddress("gunicorn.sock"))


def when_ready(_server: Any) -> None:
    """Called by gunicorn: accept connections on the vsock port."""
    forwarder.start()


def on_exit(_server: Any) -> None:
    """Called by gunicorn."""
    forwarder.stop()


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Say who asks, if the server tells."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"client: {environ.get('REMOTE_ADDR') or None}\n".encode()]


if __name__ == "__main__":
    port = int(sys.argv[1])
    with WSGIServer(("vsock", port), WSGIRequestHandler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = vsock.create_server(port)
        server.server_name, server.server_port = "vsock", port
        server.setup_environ()
        server.set_app(app)
        print(f"wsgiref on port {port}", flush=True)
        server.serve_forever()

"""HTTP over VSOCK: the standard library's server and client, each with a VSOCK socket.

    python http_over_vsock.py serve 8080 --directory /usr/share/doc
    python http_over_vsock.py get alpha:8080 /README

Other programs that use socketserver or http.client need the same two changes.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import vsock


class VsockHTTPServer(ThreadingHTTPServer):
    """An HTTP server that listens on a VSOCK port."""

    def __init__(self, port: int, handler: Callable[..., SimpleHTTPRequestHandler]) -> None:
        super().__init__(("", port), handler, bind_and_activate=False)
        self.socket.close()  # the TCP socket, which was never bound
        self.socket = vsock.create_server(port)


class VsockHTTPConnection(HTTPConnection):
    """An HTTP connection to a VSOCK address."""

    def __init__(self, address: str) -> None:
        super().__init__("vsock", timeout=5)  # the value of the Host header
        self.address = address

    def connect(self) -> None:
        """Connect to the address instead of a host and port of TCP."""
        self.sock = vsock.create_connection(self.address, timeout=5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve files, or get one, by HTTP over VSOCK.")
    commands = parser.add_subparsers(dest="command", required=True)
    serving, getting = commands.add_parser("serve"), commands.add_parser("get")
    serving.add_argument("port", type=int)
    serving.add_argument("--directory", default=".")
    getting.add_argument("address")
    getting.add_argument("path")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        handler = partial(SimpleHTTPRequestHandler, directory=arguments.directory)
        with VsockHTTPServer(arguments.port, handler) as server:
            print(f"serving {arguments.directory} on port {arguments.port}", flush=True)
            server.serve_forever()
    with closing(VsockHTTPConnection(arguments.address)) as connection:
        connection.request("GET", arguments.path)
        response = connection.getresponse()
        sys.stdout.buffer.write(response.read())
    sys.exit(response.status != 200)

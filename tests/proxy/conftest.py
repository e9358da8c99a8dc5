"""Fixtures: a web server of the host, and a proxy in this process."""

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vsock.forwarding import parse_end
from vsock.proxy.log import Entry
from vsock.proxy.rules import Rules, parse_rule
from vsock.proxy.server import Proxy, Settings


@dataclass
class Web:
    """A web server on a port of 127.0.0.1, and what it was asked for: method, target, headers and body of each request."""

    port: int
    requests: list[tuple[str, str, list[tuple[str, str]], bytes]] = field(default_factory=list)

    def headers(self, name: str) -> list[str]:
        """The values of a header in the last request."""
        return [value for key, value in self.requests[-1][2] if key.lower() == name.lower()]


def _chunks(file: Any) -> bytes:
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        assert file.readline() == b"\r\n"
    assert file.readline() == b"\r\n"
    return body


@pytest.fixture
def web() -> Iterator[Web]:
    """It answers with the path, or with the body that it got; connections stay open, if the client does not say otherwise."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            if self.headers["Transfer-Encoding"]:
                body = _chunks(self.rfile)
            else:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            found.requests.append((self.command, self.path, self.headers.items(), body))
            said = body or f"this is {self.path}\n".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said)

        do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - names of the library

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Web(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Running:
    """A proxy, where it listens, and its log.

    Attributes:
        log: all entries.
    """

    proxy: Proxy
    log: list[Entry]

    @property
    def entries(self) -> list[Entry]:
        """The entries of requests that are over."""
        return [one for one in self.log if one.verdict != "opened"]

    @property
    def port(self) -> int:
        """Its TCP port."""
        (tcp,) = [one for one in self.proxy.addresses if one.startswith("tcp:")]
        return int(tcp.rpartition(":")[2])


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def run_proxy() -> Start:
    """Runs a proxy with rules, and other settings, at a TCP port of 127.0.0.1 or at other ends."""

    @contextlib.asynccontextmanager
    async def run(
        *rules: str, ends: tuple[str, ...] = ("tcp:127.0.0.1:0",), **settings: Any
    ) -> AsyncIterator[Running]:
        log: list[Entry] = []
        settings = {"seconds": 30.0} | settings
        parsed = Rules([parse_rule(rule) for rule in rules])
        listeners = [parse_end(end) for end in ends]
        async with Proxy(listeners, Settings(rules=parsed, **settings), log.append) as proxy:
            yield Running(proxy, log)

    return run

"""The ends of a forward: a TCP address, or any address of this package.

===========================  =====================================================
``PORT``, ``tcp:PORT``       a TCP port of 127.0.0.1
``tcp:HOST:PORT``            a TCP port; an IPv6 address in brackets; to listen everywhere: ``tcp:0.0.0.0:PORT``
others                       as `vsock.address` has them: ``NAME:PORT``, ``CID:PORT``, ``unix:PATH``, ``hvsock:…``
===========================  =====================================================
"""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vsock import aio, sockets
from vsock._socket.transport import ConnectOptions, transport_for
from vsock.address import parse
from vsock.errors import AddressError

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.address import Target

__all__ = ["End", "TcpEnd", "connect", "connect_first", "keep_alive", "listen", "parse_end"]

_LOOPBACK: Final = "127.0.0.1"
_LAST_PORT: Final = 65535
_BACKLOG: Final = 1024
_HEAD_START_SECONDS: Final = 0.25
"""Of an address, before the next one is tried as well: what RFC 8305 recommends."""
_PROBES: Final = (
    (socket.TCP_KEEPIDLE, 60),
    (socket.TCP_KEEPINTVL, 15),
    (socket.TCP_KEEPCNT, 4),
)
"""A TCP peer that has vanished is known two minutes after its last packet."""


@dataclass(frozen=True, slots=True)
class TcpEnd:
    """A TCP port of a host, which is a name or an address. Port 0 to listen at any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return ``tcp:HOST:PORT``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


End = "TcpEnd | Target"


def parse_end(text: str) -> "TcpEnd | Target":
    """Read one of the forms of the module's table.

    Raises:
        AddressError: it has none of them.
    """
    if text.isascii() and text.isdigit():
        return TcpEnd(_LOOPBACK, _port(text, text))
    if not text.startswith("tcp:"):
        return parse(text)
    host, _, port = text.removeprefix("tcp:").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise AddressError(f"{text!r}: an IPv6 address is written in brackets, tcp:[::1]:80")
    return TcpEnd(host or _LOOPBACK, _port(text, port))


def _port(text: str, digits: str) -> int:
    if not (
        digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= _LAST_PORT
    ):
        raise AddressError(f"{text!r}: {digits!r} is no TCP port, which is at most {_LAST_PORT}")
    return int(digits)


async def connect(
    end: "TcpEnd | Target", transport: "Transport | str | None", seconds: float
) -> socket.socket:
    """Connect, and return a non-blocking socket.

    Raises:
        OSError: as connect(2), `vsock.create_connection` or the resolver say.
    """
    if not isinstance(end, TcpEnd):
        return await aio.run(
            transport_for(end, transport).connect(end, ConnectOptions(timeout=seconds))
        )
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds):
        found = await loop.getaddrinfo(end.host, end.port, type=socket.SOCK_STREAM)
        return await connect_first(found)


async def connect_first(found: Sequence[tuple[int, int, int, str, Any]]) -> socket.socket:
    """Connect to the first address that takes it, of those that getaddrinfo(3) returned; the socket is non-blocking.

    The next address is tried when one has failed or is silent for a moment, so that one silent address does not take all the
    time (RFC 8305).

    Raises:
        OSError: none does; the error of the last one.
    """
    failure = OSError("no address")
    waiting = list(found)
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        while waiting or attempts:
            if waiting:
                attempts.add(asyncio.create_task(_connect_to(waiting.pop(0))))
            done, attempts = await asyncio.wait(
                attempts,
                timeout=_HEAD_START_SECONDS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for one in done:
                error = one.exception()
                if error is None:
                    attempts |= done - {one}
                    return one.result()
                if not isinstance(error, OSError):
                    raise error
                failure = error
        raise failure
    finally:
        for one in attempts:
            one.cancel()
        for result in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(result, socket.socket):
                result.close()  # it was second


async def _connect_to(found: tuple[int, int, int, str, Any]) -> socket.socket:
    family, kind, proto, _, address = found
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask a TCP peer that is silent whether it is there still, so that the loss of its machine is noticed."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def listen(end: "TcpEnd | Target", transport: "Transport | str | None") -> socket.socket:
    """Listen, and return a non-blocking socket.

    Raises:
        OSError: as bind(2) or `vsock.create_server` say.
    """
    if isinstance(end, TcpEnd):
        family = socket.AF_INET6 if ":" in end.host else socket.AF_INET
        sock = socket.create_server((end.host, end.port), family=family, backlog=_BACKLOG)
    else:
        sock = sockets.create_server(end, backlog=_BACKLOG, transport=transport)
    sock.setblocking(False)
    return sock

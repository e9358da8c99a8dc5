"""SOCKS5 as a proxy speaks it with a client (RFC 1928): bytes in, a `Request` out, and answers as bytes.

Only CONNECT, and only without a login: which guest it is, the switch knows.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from vsock.proxy.request import Host, Reason, Refusal, Request, parse_host

__all__ = ["VERSION", "SocksOpening"]

VERSION: Final = 5

_NO_LOGIN: Final = 0
_NONE_ACCEPTABLE: Final = 0xFF
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_NOWHERE: Final = bytes((0, _IPV4, 0, 0, 0, 0, 0, 0))
"""The address from which the proxy connects: unspecified, as it is nobody's business."""

_CODES: Final = {
    Reason.MALFORMED: 1,
    Reason.UNSUPPORTED: 7,
    Reason.FORBIDDEN: 2,
    Reason.NO_SUCH_HOST: 4,
    Reason.UNREACHABLE: 3,
    Reason.CONNECTION_REFUSED: 5,
    Reason.TIMED_OUT: 6,
    Reason.INTERNAL: 1,
}
_UNKNOWN_ADDRESS: Final = 8


class SocksOpening:
    """What a client sends until it is clear where it wants to connect."""

    request: Request | None = None
    """What it asks for as far as that is known, also if it is refused."""
    method: str | None = None
    """Of HTTP alone."""

    def __init__(self) -> None:
        self._received = b""
        self._answer = b""
        self._has_greeted = False
        self._code: int | None = None

    @property
    def answer(self) -> bytes:
        """What is to be sent to the client now; asking for it takes it."""
        answer, self._answer = self._answer, b""
        return answer

    @property
    def rest(self) -> bytes:
        """What the client has sent behind its request."""
        return self._received

    def receive(self, data: bytes) -> Request | None:
        """Take bytes of the client, none for their end; return its request when it is whole.

        Raises:
            Refusal: it is malformed, or nothing that this proxy does.
        """
        if not data:
            raise Refusal(Reason.MALFORMED, "the connection ended before the request did")
        self._received += data
        if not self._has_greeted and not self._greet():
            return None
        return self._request()

    def granted(self) -> bytes:
        """The answer to a request that has its connection."""
        return bytes((VERSION, 0)) + _NOWHERE

    def refused(self, refusal: Refusal) -> bytes:
        """The answer to a request that is not carried out."""
        if not self._has_greeted:
            return bytes((VERSION, _NONE_ACCEPTABLE))
        return bytes((VERSION, self._code or _CODES[refusal.reason])) + _NOWHERE

    def _greet(self) -> bool:
        """Read version, count and methods."""
        if len(self._received) < 2 or len(self._received) < 2 + self._received[1]:
            return False
        end = 2 + self._received[1]
        if _NO_LOGIN not in self._received[2:end]:
            raise Refusal(Reason.UNSUPPORTED, "SOCKS with a login; this proxy has none")
        self._received = self._received[end:]
        self._answer = bytes((VERSION, _NO_LOGIN))
        self._has_greeted = True
        return True

    def _request(self) -> Request | None:
        """Read version, command, a zero, kind of address, address and port."""
        data = self._received
        if len(data) < 5:
            return None
        version, command, zero, kind, first = data[:5]
        if version != VERSION or zero:
            raise Refusal(Reason.MALFORMED, "no request of SOCKS5")
        if kind not in (_IPV4, _NAME, _IPV6):
            self._code = _UNKNOWN_ADDRESS
            raise Refusal(Reason.UNSUPPORTED, f"addresses of type {kind}")
        start, size = {_IPV4: (4, 4), _IPV6: (4, 16), _NAME: (5, first)}[kind]
        end = start + size
        if len(data) < end + 2:
            return None
        self._received = data[end + 2 :]
        port = int.from_bytes(data[end : end + 2])
        self.request = Request("socks5", _host(kind, data[start:end]), port)
        if command != _CONNECT:
            raise Refusal(Reason.UNSUPPORTED, f"command {command} of SOCKS5; only CONNECT is")
        if not port:
            raise Refusal(Reason.MALFORMED, "port 0")
        return self.request


def _host(kind: int, data: bytes) -> Host:
    if kind == _IPV4:
        return IPv4Address(data)
    if kind == _IPV6:
        return IPv6Address(data)
    return parse_host(data.decode("latin-1"))

"""What a client asks a proxy for, in whichever protocol, and why it does not get it.

Hosts are read strictly: what a resolver might take for something else than the rules do is no host.
"""

import re
from dataclasses import dataclass
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address
from typing import Final

__all__ = [
    "LAST_PORT",
    "Host",
    "Reason",
    "Refusal",
    "Request",
    "join_host",
    "parse_host",
    "split_host",
]

Host = str | IPv4Address | IPv6Address
"""A name in lower case without a dot at its end, or an address."""

LAST_PORT: Final = 65535
_LONGEST_NAME: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class Reason(Enum):
    """Why a request is refused or fails; each protocol has its codes for these."""

    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"
    FORBIDDEN = "forbidden"
    NO_SUCH_HOST = "no such host"
    UNREACHABLE = "unreachable"
    CONNECTION_REFUSED = "connection refused"
    TIMED_OUT = "timed out"
    INTERNAL = "internal"

    @property
    def is_refusal(self) -> bool:
        """Whether the proxy itself says no; else the request was let through and came to nothing."""
        return self in (Reason.MALFORMED, Reason.UNSUPPORTED, Reason.FORBIDDEN)


class Refusal(Exception):  # noqa: N818 - a result that unwinds, not a fault of the program
    """A request that is not carried out.

    Args:
        reason: of which kind.
        text: one line of ASCII for the client.
        details: what only the log tells, such as an address of the host's network.
    """

    def __init__(self, reason: Reason, text: str, details: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.details = details


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        protocol: `http`, `connect` (HTTP's method CONNECT) or `socks5`.
        host: where to.
        port: 1 to 65535; 0 only in what SOCKS refuses.
        method: of HTTP; None for a connection, of whose bytes nothing is known.
        path: of an HTTP request, without its query.
    """

    protocol: str
    host: Host
    port: int
    method: str | None = None
    path: str | None = None

    @property
    def target(self) -> str:
        """``HOST:PORT``."""
        return join_host(self.host, self.port)


def join_host(host: Host, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"


def split_host(text: str, port: int | None = None) -> tuple[Host, int]:
    """Read ``HOST:PORT``; `port` is taken if there is none.

    Raises:
        Refusal: it is something else.
    """
    host, colon, digits = text.rpartition(":")
    if not colon or "]" in digits:
        host, digits = text, ""
    if digits:
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
            raise _malformed()
        port = int(digits)
    if port is None or not 1 <= port <= LAST_PORT:
        raise _malformed()
    if host.startswith("[") and host.endswith("]") and "%" not in host:
        try:
            return IPv6Address(host[1:-1]), port
        except AddressValueError:
            raise _malformed() from None
    if ":" in host:
        raise _malformed()
    return parse_host(host), port


def parse_host(text: str) -> Host:
    """Read a name or an IPv4 address.

    Raises:
        Refusal: it is neither. Names that end in a number are none, because resolvers take some of them for addresses.
    """
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return ip_address(name)
        except ValueError:
            raise _malformed() from None
    if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise _malformed()
    return name


def _malformed() -> Refusal:
    """Without what it is instead, which may be a password, and goes to a log."""
    return Refusal(Reason.MALFORMED, "that is no host and port")

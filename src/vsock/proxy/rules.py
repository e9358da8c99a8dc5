"""Who may be reached through the proxy: a list of what is allowed; everything else is refused.

==============================  ============================================================================
``example.org:443``             a host by its name; ports may be several, ``443,80``, a range, or ``*``
``*.example.org``               all names below it, not itself; without ports: 80 and 443
``*:443``                       every name
``192.0.2.0/24:5432``           addresses; IPv6 in brackets, ``[2001:db8::/32]:443``
``example.org:80 GET,HEAD``     requests of plain HTTP with these methods, and no connections, which could carry any
==============================  ============================================================================

A name is allowed, and then each address that it has. One that is not public (`vsock.proxy.addresses`), or this machine's own,
needs a rule of its own, for itself or for a network without public addresses: who owns a name chooses where it leads.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network
from typing import Final

from vsock.errors import UsageError
from vsock.proxy.addresses import IPAddress, IPNetwork, canonical, is_inner, is_public
from vsock.proxy.request import LAST_PORT, Reason, Refusal, Request, parse_host

__all__ = ["Rule", "Rules", "parse_rule"]

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""Addresses of IPv4, as which they are checked (`vsock.proxy.addresses.canonical`)."""
_PORTS: Final = (range(80, 81), range(443, 444))
_METHOD: Final = re.compile(r"[A-Z]{1,32}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the list.

    Attributes:
        name: a host's name, ``*.`` and a name, or ``*``; empty if the rule is about addresses.
        network: addresses; None if the rule is about names.
        ports: those that are allowed.
        methods: of plain HTTP requests; None for these with any method, and connections.
    """

    name: str
    network: IPNetwork | None
    ports: tuple[range, ...]
    methods: frozenset[str] | None

    def is_about(self, request: Request) -> bool:
        """Whether it is about the host that is asked for."""
        if not isinstance(request.host, str):
            return self.has(request.host)
        if self.name.startswith("*"):
            return request.host.endswith(self.name[1:])
        return request.host == self.name

    def has(self, address: IPAddress) -> bool:
        """Whether it is about an address."""
        return self.network is not None and canonical(address) in self.network

    def allows(self, request: Request) -> bool:
        """Whether it allows the port and the method that are asked for."""
        return any(request.port in ports for ports in self.ports) and (
            self.methods is None or request.method in self.methods
        )


class Rules:
    """The whole list."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)

    def check(self, request: Request) -> None:
        """Return if the request is allowed, as far as the host's addresses are not known yet.

        Raises:
            Refusal: it is not.
        """
        about = [rule for rule in self._rules if rule.is_about(request)]
        if not any(rule.allows(request) for rule in about):
            what = (
                f"{request.method or 'a connection'} to {request.target}"
                if about
                else request.target
            )
            raise Refusal(Reason.FORBIDDEN, f"{what} is not allowed")
        if not isinstance(request.host, str) and not self.allows_address(request, request.host):
            raise _not_public(request, request.host)

    def allows_address(self, request: Request, address: IPAddress, *, is_own: bool = False) -> bool:
        """Whether a request that is allowed may go to an address of its host; `is_own`: it is this machine's."""
        if is_public(address) and not is_own:
            return True
        return any(
            rule.has(address) and rule.allows(request)
            for rule in self._rules
            if rule.network and (is_inner(rule.network) or rule.network.num_addresses == 1)
        )

    def check_addresses(
        self, request: Request, addresses: Sequence[tuple[IPAddress, bool]]
    ) -> list[int]:
        """Return the indexes of the addresses, each with whether it is this machine's, that the request may go to.

        Raises:
            Refusal: there is none.
        """
        allowed = [
            index
            for index, (address, is_own) in enumerate(addresses)
            if self.allows_address(request, address, is_own=is_own)
        ]
        if not allowed:
            raise _not_public(request, *(address for address, _ in addresses))
        return allowed


def _not_public(request: Request, *addresses: IPAddress) -> Refusal:
    return Refusal(
        Reason.FORBIDDEN,
        f"{request.target} is not public",
        f"no rule allows {', '.join(map(str, addresses[:4]))}",
    )


def parse_rule(text: str) -> Rule:
    """Read one of the forms of the module's table.

    Raises:
        UsageError: it has none of them.
    """
    words = text.split()
    if "://" in text:
        raise UsageError(f"{text!r}: a rule has no scheme: write HOST:PORTS")
    if not 1 <= len(words) <= 2:
        raise UsageError(f"{text!r} is no rule: write HOST, HOST:PORTS or 'HOST:PORTS METHODS'")
    methods = frozenset(words[1].split(",")) if len(words) == 2 else None
    for method in methods or ():
        if not _METHOD.fullmatch(method) or method == "CONNECT":
            raise UsageError(f"{text!r}: {method!r} is no method of plain HTTP, such as GET")
    host, ports = _split(words[0])
    name, network = _host(text, host)
    return Rule(name, network, _PORTS if ports is None else _ports(text, ports), methods)


def _split(text: str) -> tuple[str, str | None]:
    host, colon, ports = text.rpartition(":")
    if not colon or "]" in ports or (host.count(":") > 0 and not host.startswith("[")):
        return text, None
    return host, ports


def _host(text: str, host: str) -> tuple[str, IPNetwork | None]:
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        network = ip_network(host[1:-1] if bracketed else host)
    except ValueError as error:
        if "host bits" in str(error):
            raise UsageError(f"{text!r}: {error}") from None
    else:
        if bracketed != (network.version == 6):
            raise UsageError(f"{text!r}: an IPv6 address is written in brackets, [::1]:80")
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            raise UsageError(f"{text!r}: write the IPv4 address itself")
        return "", network
    name = host.removeprefix("*.")
    if host == "*":
        return "*", None
    try:
        parsed = parse_host(name)
    except Refusal:
        parsed = None
    if not isinstance(parsed, str):
        raise UsageError(f"{text!r}: {host!r} is no host name, address or network")
    return (f"*.{parsed}" if host.startswith("*.") else parsed), None


def _ports(text: str, ports: str) -> tuple[range, ...]:
    found = []
    for part in ports.split(","):
        first, dash, last = part.partition("-")
        first, last = ("1", str(LAST_PORT)) if part == "*" else (first, last if dash else first)
        numbers = [
            int(one) if one.isascii() and one.isdigit() and len(one) <= 5 else 0
            for one in (first, last)
        ]
        if not 1 <= numbers[0] <= numbers[1] <= LAST_PORT:
            raise UsageError(
                f"{text!r}: {part!r} is no port and no range of ports, 1 to {LAST_PORT}"
            )
        found.append(range(numbers[0], numbers[1] + 1))
    return tuple(found)

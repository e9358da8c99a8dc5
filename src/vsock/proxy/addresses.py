"""Which IP addresses are public: reachable by anybody on the Internet, so that reaching them is no privilege of this host.

All others are this host's own, its network's, or nobody's: loopback, private networks, link-local ones with the metadata
service of a cloud, multicast. An IPv6 address that carries an IPv4 one is as public as that. Clouds have services at further
addresses, which registries call public, and which answer to their machines alone: Azure's WireServer (168.63.129.16), Oracle's
(192.0.0.192).
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

__all__ = ["IPAddress", "IPNetwork", "canonical", "is_inner", "is_public"]

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""All that is assigned for the Internet (RFC 4291, section 2.4, and IANA's registry)."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address, to which a gateway translates."""
_OF_CLOUDS: Final = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))
"""Azure's WireServer, with secrets of the machine; and all of IETF's protocol assignments (RFC 6890), of which Oracle uses some."""
_WIDEST_INNER: Final = {4: 8, 6: 7}
"""Prefixes of the widest private networks, 10.0.0.0/8 and fc00::/7."""


def canonical(address: IPAddress) -> IPAddress:
    """The address itself, or the IPv4 address that the kernel takes an IPv4-mapped one for."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address.scope_id:
            return IPv6Address(int(address))
    return address


def is_public(address: IPAddress) -> bool:
    """Whether anybody on the Internet reaches the address."""
    address = canonical(address)
    if isinstance(address, IPv4Address):
        return (
            address.is_global
            and not address.is_multicast
            and not address.is_reserved
            and not any(address in network for network in _OF_CLOUDS)
        )
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address not in _GLOBAL_UNICAST or not address.is_global:
        return False
    return address.sixtofour is None or is_public(address.sixtofour)


def is_inner(network: IPNetwork) -> bool:
    """Whether a network has no public address, so that naming it means its addresses; 0.0.0.0/0 is not such a one."""
    ends = (network.network_address, network.broadcast_address)
    return network.prefixlen >= _WIDEST_INNER[network.version] and not any(map(is_public, ends))

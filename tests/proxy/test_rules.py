"""What rules allow: hosts, ports, methods, and the addresses that names lead to."""

from ipaddress import ip_address, ip_network

import pytest

from vsock.errors import UsageError
from vsock.proxy.addresses import is_inner, is_public
from vsock.proxy.request import Reason, Refusal, Request, parse_host, split_host
from vsock.proxy.rules import Rules, parse_rule


def is_allowed(rules: list[str], host: str, port: int = 443, method: str | None = None) -> bool:
    """Whether a request passes, as far as names go."""
    request = Request("http" if method else "connect", parse_host(host), port, method)
    try:
        Rules([parse_rule(rule) for rule in rules]).check(request)
    except Refusal as error:
        assert error.reason is Reason.FORBIDDEN
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "host", "port", "expected"),
    [
        ("example.org", "example.org", 443, True),
        ("example.org", "example.org", 80, True),
        ("example.org", "example.org", 22, False),
        ("example.org", "EXAMPLE.org.", 443, True),
        ("example.org", "example.com", 443, False),
        ("example.org", "notexample.org", 443, False),
        ("example.org", "www.example.org", 443, False),
        ("*.example.org", "www.example.org", 443, True),
        ("*.example.org", "a.b.example.org", 443, True),
        ("*.example.org", "example.org", 443, False),
        ("*.example.org", "evilexample.org", 443, False),
        ("*:443", "anything.test", 443, True),
        ("*:443", "198.51.100.1", 443, False),
        ("a.test:22,8000-8002", "a.test", 8001, True),
        ("a.test:22,8000-8002", "a.test", 8003, False),
        ("a.test:*", "a.test", 65535, True),
        ("8.8.8.0/24:443", "8.8.8.8", 443, True),
        ("8.8.8.0/24:443", "8.8.9.8", 443, False),
        ("10.0.0.0/8:5432", "10.1.2.3", 5432, True),
        ("127.0.0.1:80", "127.0.0.1", 80, True),
        ("0.0.0.0/0:443", "8.8.8.8", 443, True),
        ("0.0.0.0/0:443", "10.1.2.3", 443, False),
        ("0.0.0.0/0:443", "127.0.0.1", 443, False),
        ("0.0.0.0/0:443", "169.254.169.254", 443, False),
    ],
)
def test_hosts_and_ports(rule: str, host: str, port: int, expected: bool) -> None:
    """A name is that name, and a wide network means none of the addresses that only this host reaches."""
    assert is_allowed([rule], host, port) is expected


def test_ipv6_is_in_brackets() -> None:
    """Addresses and networks; an IPv4-mapped address is the IPv4 one, as for the kernel."""
    Rules([parse_rule("[2606:4700::/32]:443")]).check(
        Request("connect", *split_host("[2606:4700::1]:443"))
    )
    mapped = Request("connect", *split_host("[::ffff:127.0.0.1]:80"))
    with pytest.raises(Refusal):
        Rules([parse_rule("[::/0]:80")]).check(mapped)
    Rules([parse_rule("127.0.0.1:80")]).check(mapped)


def test_methods_are_for_plain_requests_alone() -> None:
    """A connection could carry any method, so such a rule allows none."""
    rules = ["mirror.test:80 GET,HEAD"]
    assert is_allowed(rules, "mirror.test", 80, "GET")
    assert not is_allowed(rules, "mirror.test", 80, "POST")
    assert not is_allowed(rules, "mirror.test", 80)
    assert is_allowed([*rules, "mirror.test:80"], "mirror.test", 80)


@pytest.mark.parametrize(
    "rule",
    [
        *(
            "",
            " ",
            "a b c",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "a.test:2-1",
            "a.test:x",
            "a.test:1,",
        ),
        *(
            "::1:80",
            "::1",
            "[127.0.0.1]:80",
            "[::ffff:10.0.0.1]:80",
            "[::ffff:10.0.0.0/104]:80",
            "10.0.0.1/8:80",
            "http://a.test",
            "a.test/x",
            "*a.test",
            "a.*",
        ),
        *(
            "a.test:80 get",
            "a.test:80 GET,",
            "a.test CONNECT",
            "a..test",
            "2130706433",
            "0x7f.1",
            "127.1:80",
            "*.1.2.3.4",
            "é.test",
        ),
    ],
)
def test_what_is_no_rule_is_refused(rule: str) -> None:
    """With the rule in the message."""
    with pytest.raises(UsageError, match="'"):
        parse_rule(rule)


def test_names_lead_only_to_public_addresses() -> None:
    """Unless a rule is about the address, with the same port and method."""
    request = Request("connect", "a.test", 443)
    inner, outer = ip_address("10.0.0.7"), ip_address("8.8.8.8")
    by_name = parse_rule("a.test")
    assert Rules([by_name]).check_addresses(request, [(inner, False), (outer, False)]) == [1]
    with pytest.raises(Refusal) as caught:
        Rules([by_name]).check_addresses(request, [(inner, False)])
    assert "10.0.0.7" not in caught.value.text
    assert "10.0.0.7" in caught.value.details
    for rule, allowed in (
        ("10.0.0.7:443", True),
        ("10.0.0.0/24:443", True),
        ("10.0.0.7:80", False),
        ("10.0.0.8:443", False),
        ("0.0.0.0/0:443", False),
        ("10.0.0.7:443 GET", False),
    ):
        rules = Rules([by_name, parse_rule(rule)])
        assert rules.allows_address(request, inner) is allowed, rule
    # This machine's own address is public, perhaps, but its services are meant for others.
    assert not Rules([by_name]).allows_address(request, outer, is_own=True)
    assert Rules([by_name, parse_rule("8.8.8.8:443")]).allows_address(request, outer, is_own=True)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(
            ("8.8.8.8", True),
            ("2606:4700::1", True),
            ("64:ff9b::808:808", True),
            ("2002:808:808::1", True),
        ),
        *(("127.0.0.1", False), ("0.0.0.0", False), ("10.0.0.1", False), ("172.16.0.1", False)),
        *(
            ("192.168.1.1", False),
            ("169.254.169.254", False),
            ("100.64.0.1", False),
            ("224.0.0.1", False),
        ),
        *(
            ("240.0.0.1", False),
            ("255.255.255.255", False),
            ("::", False),
            ("::1", False),
            ("fe80::1%2", False),
        ),
        *(
            ("fd00:ec2::254", False),
            ("fec0::1", False),
            ("ff02::1", False),
            ("::ffff:127.0.0.1", False),
        ),
        *(
            ("::7f00:1", False),
            ("64:ff9b::7f00:1", False),
            ("2002:7f00:1::", False),
            ("2001:db8::1", False),
        ),
        ("64:ff9b:1::a00:1", False),
        *(
            ("168.63.129.16", False),
            ("168.63.129.17", True),
            ("192.0.0.9", False),
            ("192.0.0.192", False),
            ("100.100.100.200", False),
            ("::ffff:168.63.129.16", False),
            ("64:ff9b::a83f:8110", False),
        ),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    """Forms of IPv6 that carry an IPv4 address are as public as that."""
    assert is_public(ip_address(address)) is expected


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        *(
            ("10.0.0.0/8", True),
            ("127.0.0.0/8", True),
            ("192.168.0.0/16", True),
            ("fc00::/7", True),
        ),
        *(("0.0.0.0/0", False), ("172.0.0.0/8", False), ("8.8.8.0/24", False), ("::/0", False)),
    ],
)
def test_inner_networks(network: str, expected: bool) -> None:
    """Those that nobody names without meaning what is inside."""
    assert is_inner(ip_network(network)) is expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":80",
            "a",
            "a:",
            "a:0",
            "a:65536",
            "a:x",
            "a:²",
            "a:80:80",
            "[::1",
            "::1:80",
            "[::1]",
            "[fe80::1%25x]:80",
        ),
        *(
            "a b:80",
            "a/b:80",
            "a@b:80",
            "a\\b:80",
            "a..b:80",
            "-a:80",
            "a%2e:80",
            "1:80",
            "127.1:80",
            "0x7f000001:80",
        ),
        *("017700000001:80", "1.2.3.4.5:80", "a.0x1:80", f"{'a' * 64}:80", f"{'a.' * 130}a:80"),
    ],
)
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    """Above all what a resolver takes for an address that no rule has seen."""
    with pytest.raises(Refusal) as caught:
        split_host(text)
    assert caught.value.reason is Reason.MALFORMED
    assert len(caught.value.text) < 300
    assert caught.value.text.isascii()

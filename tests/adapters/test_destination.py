"""Where a URL leads: the same for all HTTP clients."""

import pytest

import vsock
from vsock.adapters.destination import Destination
from vsock.errors import AddressError


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("alpha", vsock.NamedAddress("alpha", 80)),
        ("alpha.vsock", vsock.NamedAddress("alpha", 80)),
        ("3", vsock.Address(3, 80)),
        ("host", vsock.Address(2, 80)),
        ("local", vsock.Address(1, 80)),
        ("unix", vsock.NamedAddress("unix", 80)),
    ],
)
def test_host_of_a_url_is_a_guest(host, address):
    """By name, with and without the suffix, or by CID."""
    assert Destination().of(host, 80) == address


@pytest.mark.parametrize("host", ["", "127.0.0.1", "::1", "a b", "4294967296", "alpha:1"])
def test_other_hosts_are_refused(host):
    """None of them is looked up anywhere else."""
    with pytest.raises(AddressError):
        Destination().of(host, 80)


def test_an_address_is_where_all_requests_go():
    """Of any form, and whatever the URL says."""
    for address in ("alpha:100000", "hvsock:///run/fc.sock:80", "unix:/run/app.sock"):
        assert Destination(address).of("example.org", 443) == vsock.parse(address)


def test_wrong_address_is_an_error_at_once():
    """And not at the first request."""
    with pytest.raises(AddressError):
        Destination("alpha")

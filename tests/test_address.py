"""Addresses: their values, and how they are parsed and printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsock import (
    CID_ANY,
    PORT_ANY,
    Address,
    AddressError,
    HybridAddress,
    KernelAddress,
    NamedAddress,
    UnixAddress,
    parse,
)
from vsock.address import WELL_KNOWN_CIDS, as_target, is_name

NUMBERS = st.integers(0, 0xFFFFFFFF)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", fullmatch=True).filter(is_name)
PATHS = st.from_regex(r"/[^/\0\n][^\0\n]{0,40}", fullmatch=True)
TARGETS = st.one_of(
    st.builds(Address, NUMBERS, NUMBERS),
    st.builds(NamedAddress, NAMES, NUMBERS),
    st.builds(UnixAddress, PATHS),
    st.builds(HybridAddress, PATHS, NUMBERS),
    st.builds(KernelAddress, NUMBERS, NUMBERS),
)


@given(TARGETS)
def test_target_printed_and_parsed_is_itself(target):
    """Every target prints as text that reads back as the same value of the same type."""
    again = parse(str(target))
    assert (type(again), again) == (type(target), target)


@given(st.text(max_size=60))
def test_any_text_parsed_gives_a_target_or_an_address_error(text):
    """The parser raises only the documented error for any text."""
    try:
        target = parse(text)
    except AddressError:
        return
    assert str(parse(str(target))) == str(target)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("3:1024", Address(3, 1024)),
        ("vsock://3:1024", Address(3, 1024)),
        ("vsock://web:80/", NamedAddress("web", 80)),
        ("web-1.example_2:80", NamedAddress("web-1.example_2", 80)),
        ("host:22", Address(2, 22)),
        ("local:22", Address(1, 22)),
        ("hypervisor:0", Address(0, 0)),
        ("any:any", Address(CID_ANY, PORT_ANY)),
        ("4294967295:4294967295", Address(CID_ANY, PORT_ANY)),
        ("unix:/run/a b:c", UnixAddress("/run/a b:c")),
        ("unix:///run/a", UnixAddress("/run/a")),
        ("unix:a", UnixAddress("a")),
        ("hvsock:///run/fc.sock:52", HybridAddress("/run/fc.sock", 52)),
        ("hvsock:/run/a:b:52", HybridAddress("/run/a:b", 52)),
        ("kernel:2:1024", KernelAddress(2, 1024)),
        ("kernel:host:any", KernelAddress(2, PORT_ANY)),
    ],
)
def test_text_of_each_form_parsed_gives_its_target(text, target):
    """Each address form is parsed as documented."""
    assert parse(text) == target
    assert type(parse(text)) is type(target)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "CID:PORT"),
        ("80", "CID:PORT"),
        (":80", "CID:PORT"),
        ("web", "CID:PORT"),
        ("web:", "port ''"),
        ("web:http", "port 'http'"),
        ("web:-1", "port '-1'"),
        ("web:٣", "port '٣'"),
        ("web:4294967296", "port 4294967296 is larger"),
        ("web:99999999999", "port '99999999999'"),
        ("4294967296:1", "CID 4294967296 is larger"),
        ("3x:1", "CID '3x'"),
        ("-3:1", "'-3' is neither"),
        ("a b:1", "'a b' is neither"),
        ("tcp://web:80", "unknown scheme"),
        ("unix:", "a path must follow"),
        ("hvsock://run/a:1", "an absolute path"),
        ("hvsock:///run/a", "CID:PORT"),
        ("kernel:web:1", "knows no names"),
    ],
)
def test_wrong_text_parsed_raises_with_the_reason(text, reason):
    """An invalid address is an error that names the wrong part."""
    with pytest.raises(AddressError, match=reason):
        parse(text)


@pytest.mark.parametrize("bad", [-2, 1 << 32, "3", 3.0, None, True])
def test_address_of_no_32_bit_number_raises(bad):
    """CID and port must be integers of 32 bits."""
    with pytest.raises(AddressError, match="CID"):
        Address(bad, 1)
    with pytest.raises(AddressError, match="port"):
        Address(1, bad)


def test_address_compared_to_a_tuple_is_equal():
    """An address works wherever the standard library's AF_VSOCK uses a pair."""
    cid, port = Address(3, 4)
    assert (cid, port) == (3, 4) == Address(3, 4)
    with pytest.raises(AttributeError):
        Address(3, 4).cid = 5  # type: ignore[misc]


def test_kernel_address_as_target_stays_one():
    """A pair of another meaning is never taken for a plain address."""
    assert type(as_target(KernelAddress(2, 5))) is KernelAddress
    assert type(as_target((2, 5))) is Address
    with pytest.raises(AddressError, match="pair"):
        as_target((2, 5, 6))


def test_minus_one_is_the_wildcard():
    """As in C programs and Python's own sockets (A6)."""
    assert Address(-1, -1) == (0xFFFFFFFF, 0xFFFFFFFF)


def test_pair_with_a_name_says_how_to_write_it():
    """Other Python sockets accept a pair of name and port, so users try it (N27)."""
    with pytest.raises(AddressError, match="write 'alpha:5000'"):
        as_target(("alpha", 5000))
    with pytest.raises(TypeError, match="write 'host:5000'"):
        as_target(("host", 5000))


@pytest.mark.parametrize("name", [*WELL_KNOWN_CIDS, "", "7up", "a:b", "a/b", "x" * 64, "ü"])
def test_reserved_or_malformed_name_is_no_name(name):
    """A guest cannot have a name that could not be part of an address."""
    assert not is_name(name)

"""VSOCK addresses: constants, the values, and the ways to write one down.

An address is a context id (CID), which names a machine, and a port. On a command line or in a
config file there is more to say, so `parse` knows these forms:

=========================  ==================================================================
``CID:PORT``               an `Address`; ``host``, ``local`` and ``any`` are CIDs 2, 1 and -1
``NAME:PORT``              a `NamedAddress`: a guest of the switch, by its name
``vsock://NAME-or-CID:PORT``  the same two as a URL
``unix:/path``             a `vsock.UnixAddress`: a plain Unix stream socket
``hvsock:///path:PORT``    a `vsock.HybridAddress`: the Unix socket of a Firecracker-style hypervisor
``kernel:CID:PORT``        a `vsock.KernelAddress`: the kernel's own AF_VSOCK, only when asked by name
=========================  ==================================================================

Every address prints as text that `parse` reads back. A port is decimal, or ``any``. The first forms
are for every transport that has CIDs. Each of the others belongs to the module of
`vsock.transports` that has the name of its scheme, which is imported when such an address is read;
so another form is another module there. This module resolves no names and opens no sockets.
"""

import re
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol, TypeGuard

from vsock.errors import AddressError, AddressTypeError

CID_ANY = 0xFFFFFFFF
"""The wildcard for `bind`, and "no CID"."""
CID_HYPERVISOR = 0
"""Hypervisor services (VMCI only)."""
CID_LOCAL = 1
"""This machine itself (loopback)."""
CID_HOST = 2
"""The host, which is where the switch runs."""
PORT_ANY = 0xFFFFFFFF
"""The wildcard for `bind`: choose a port; never the number of a bound port."""

VMADDR_CID_ANY = CID_ANY
VMADDR_CID_HYPERVISOR = CID_HYPERVISOR
VMADDR_CID_LOCAL = CID_LOCAL
VMADDR_CID_HOST = CID_HOST
VMADDR_PORT_ANY = PORT_ANY

WELL_KNOWN_CIDS = {
    "any": CID_ANY,
    "hypervisor": CID_HYPERVISOR,
    "local": CID_LOCAL,
    "host": CID_HOST,
}
"""Names that are no guests: they cannot be given to a guest of a switch."""

_LIMIT = 0xFFFFFFFF
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
_SCHEME = re.compile(r"[a-z][a-z0-9]*")
_SHORT_SCHEMES: Final = ("unix", "hvsock", "kernel")
"""Schemes that may be written without ``//``: no guest with one of these names can be said in an address."""


class Target(Protocol):
    """An address of any form."""

    @property
    def transport(self) -> str | None:
        """The module of `vsock.transports` that the form belongs to; None: whichever transport the caller names."""


class _CidAndPort(NamedTuple):
    cid: int
    port: int


class Address(_CidAndPort):
    """A CID and a port: an immutable pair that compares equal to the tuple ``(cid, port)``.

    Args:
        cid: a machine, 32 bits: `CID_HOST`, `CID_LOCAL`, `CID_ANY` or a guest's.
        port: a program there, 32 bits.

    Raises:
        AddressError: a part is no integer from 0 to 4294967295, nor -1, which means the wildcard.
    """

    __slots__ = ()

    @property
    def transport(self) -> None:
        """Whichever the caller names."""

    def __new__(cls, cid: int, port: int) -> "Address":
        """Make the address `cid`:`port` after checking both."""
        return super().__new__(cls, _checked("CID", cid), _checked("port", port))

    def __str__(self) -> str:
        """Return ``CID:PORT``, with ``any`` for a wildcard."""
        return f"{print_cid(self.cid)}:{print_port(self.port)}"


class NamedAddress(NamedTuple):
    """A `port` of a guest known by its `name`, which a switch turns into a CID when it is used."""

    name: str
    port: int

    @property
    def transport(self) -> None:
        """Whichever the caller names."""

    def __str__(self) -> str:
        """Return ``NAME:PORT``."""
        return f"{self.name}:{print_port(self.port)}"


AddressLike = Target | tuple[int, int] | str
"""What every call takes for an address: a pair, one of the address types, or text."""


def parse(text: str) -> Target:
    """Read one of the address forms of the module's table.

    Raises:
        AddressError: `text` has none of the forms; the message says what is wrong with it.
    """
    if not isinstance(text, str):
        raise AddressError(f"an address to be read is text, not {type(text).__name__}")
    scheme, _, rest = text.partition(":")
    if scheme in _SHORT_SCHEMES or (rest.startswith("//") and scheme != "vsock"):
        return _parse_form(scheme, text)
    where, port = split_port(text, text.removeprefix("vsock://").removesuffix("/"))
    cid = parse_cid(text, where)
    return NamedAddress(where, port) if cid is None else Address(cid, port)


def as_target(address: Any) -> Target:
    """Return what `address`, in any of the forms the verbs take, stands for.

    Raises:
        AddressError: it has none of them; `AddressTypeError` if it is not even text or a pair of numbers.
    """
    if isinstance(address, str):
        return parse(address)
    if _is_target(address):
        return address
    if not isinstance(address, tuple) or len(address) != 2:
        raise AddressTypeError(f"an address is a pair (cid, port) or text, not {address!r}")
    cid, port = address
    if isinstance(cid, str) and (is_name(cid) or cid in WELL_KNOWN_CIDS):
        raise AddressTypeError(f"the CID must be an integer, not a name: write '{cid}:{port}'")
    return Address(cid, port)


def is_name(text: str) -> bool:
    """Tell whether a guest may have the name `text`.

    A name starts with a letter, goes on with letters, digits, ``_``, ``.`` and ``-``, has at most
    63 characters and is not one of `WELL_KNOWN_CIDS`.
    """
    return _NAME.fullmatch(text) is not None and text not in WELL_KNOWN_CIDS


def _is_target(address: object) -> TypeGuard[Target]:
    # Other things, such as a `vsock.Guest`, have an attribute of this name that is a transport.
    return isinstance(getattr(address, "transport", 0), str | None)


def _parse_form(scheme: str, text: str) -> Target:
    """Read an address by the module of `vsock.transports` that has the name of its scheme."""
    unknown = AddressError(
        f"{text!r}: unknown scheme {scheme!r} (known: vsock, {', '.join(_SHORT_SCHEMES)})"
    )
    if not _SCHEME.fullmatch(scheme):
        raise unknown
    name = f"vsock.transports.{scheme}"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise unknown from None
    if not hasattr(module, "parse"):
        raise unknown
    target: Target = module.parse(text)
    return target


def split_port(text: str, rest: str) -> tuple[str, int]:
    """Return what stands before the port in `rest`, a part of the address `text`, and the port."""
    where, colon, port_text = rest.rpartition(":")
    if not colon or not where:
        raise AddressError(f"{text!r}: an address is CID:PORT or NAME:PORT")
    if port_text == "any":
        return where, PORT_ANY
    return where, _number(text, "port", port_text)


def parse_cid(text: str, where: str) -> int | None:
    """Return the CID that `where`, a part of the address `text`, says, or None if it is a guest's name."""
    if where in WELL_KNOWN_CIDS:
        return WELL_KNOWN_CIDS[where]
    if is_name(where):
        return None
    if where[:1].isdecimal():
        return _number(text, "CID", where)
    raise AddressError(f"{text!r}: {where!r} is neither a CID nor a guest's name")


def _number(text: str, what: str, digits: str) -> int:
    # Ten digits are enough for 32 bits; more would only make int() work for nothing.
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10):
        raise AddressError(f"{text!r}: the {what} {digits!r} is no decimal number up to {_LIMIT}")
    if int(digits) > _LIMIT:
        raise AddressError(f"{text!r}: the {what} {digits} is larger than {_LIMIT}")
    return int(digits)


def _checked(what: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise AddressTypeError(f"the {what} must be an integer, not {type(number).__name__}")
    if number == -1:  # as C programs write VMADDR_CID_ANY and VMADDR_PORT_ANY
        return _LIMIT
    if not 0 <= number <= _LIMIT:
        raise AddressError(f"the {what} {number} is not between 0 and {_LIMIT}")
    return number


def print_cid(cid: int) -> str:
    """Return a CID as it is written in an address."""
    return "any" if cid == CID_ANY else str(cid)


def print_port(port: int) -> str:
    """Return a port as it is written in an address."""
    return "any" if port == PORT_ANY else str(port)

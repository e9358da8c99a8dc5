"""VSOCK addresses: constants, the value, and the ways to write one down.

An address is a context id (CID), which names a machine, and a port. On a command line or in a
config file there is more to say, so `parse` knows these kinds of *target*:

=========================  ==================================================================
``CID:PORT``               an `Address`; ``host``, ``local`` and ``any`` are CIDs 2, 1 and -1
``NAME:PORT``              a `NamedAddress`: a guest of the switch, by its name
``vsock://NAME-or-CID:PORT``  the same two as a URL
``unix:/path``             a `UnixAddress`: a plain Unix stream socket
``hvsock:///path:PORT``    a `HybridAddress`: the Unix socket of a Firecracker-style hypervisor
``kernel:CID:PORT``        a `KernelAddress`: the kernel's own AF_VSOCK, only when asked by name
=========================  ==================================================================

Every target prints as text that `parse` reads back. A port is decimal, or ``any``. This is a leaf:
it resolves no names and opens no sockets.
"""

import re
from typing import Any, NamedTuple

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

    def __new__(cls, cid: int, port: int) -> "Address":
        """Make the address `cid`:`port` after checking both."""
        return super().__new__(cls, _checked("CID", cid), _checked("port", port))

    def __str__(self) -> str:
        """Return ``CID:PORT``, with ``any`` for a wildcard."""
        return f"{_print_cid(self.cid)}:{_print_port(self.port)}"


class NamedAddress(NamedTuple):
    """A `port` of a guest known by its `name`, which a switch turns into a CID when it is used."""

    name: str
    port: int

    def __str__(self) -> str:
        """Return ``NAME:PORT``."""
        return f"{self.name}:{_print_port(self.port)}"


class UnixAddress(NamedTuple):
    """A Unix stream socket at `path` (at most 107 bytes), used as it is."""

    path: str

    def __str__(self) -> str:
        """Return ``unix:PATH``."""
        return f"unix:{self.path}"


class HybridAddress(NamedTuple):
    """A guest's `port` behind the Unix socket of its hypervisor at `path` (``CONNECT`` handshake)."""

    path: str
    port: int

    def __str__(self) -> str:
        """Return ``hvsock://PATH:PORT``."""
        return f"hvsock://{self.path}:{_print_port(self.port)}"


class KernelAddress(NamedTuple):
    """An address, `cid` and `port`, in the kernel's own AF_VSOCK."""

    cid: int
    port: int

    def __str__(self) -> str:
        """Return ``kernel:CID:PORT``."""
        return f"kernel:{_print_cid(self.cid)}:{_print_port(self.port)}"


Target = Address | NamedAddress | UnixAddress | HybridAddress | KernelAddress
"""Everything that `parse` can return."""


def parse(text: str) -> Target:
    """Read one of the address forms of the module's table.

    Raises:
        AddressError: `text` has none of the forms; the message says what is wrong with it.
    """
    if not isinstance(text, str):
        raise AddressError(f"an address to be read is text, not {type(text).__name__}")
    if text.startswith("unix:"):
        return _parse_unix(text)
    if text.startswith("hvsock:"):
        return _parse_hybrid(text)
    if text.startswith("kernel:"):
        cid_text, port = _split(text, text.removeprefix("kernel:"))
        cid = _parse_cid(text, cid_text)
        if cid is None:
            raise AddressError(f"{text!r}: the kernel knows no names, {cid_text!r} must be a CID")
        return KernelAddress(cid, port)
    if "://" in text and not text.startswith("vsock://"):
        raise AddressError(f"{text!r}: unknown scheme (known: vsock, unix, hvsock, kernel)")
    rest = text.removeprefix("vsock://").removesuffix("/")
    where, port = _split(text, rest)
    cid = _parse_cid(text, where)
    return NamedAddress(where, port) if cid is None else Address(cid, port)


def as_target(address: Any) -> Target:
    """Return what `address`, in any of the forms the verbs take, stands for.

    Raises:
        AddressError: it has none of them; `AddressTypeError` if it is not even text or a pair of numbers.
    """
    if isinstance(address, str):
        return parse(address)
    if isinstance(address, Address | NamedAddress | UnixAddress | HybridAddress | KernelAddress):
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


def _parse_unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("//"):  # written as a URL: unix:///path
        path = path.removeprefix("//")
    if not path or "\0" in path:
        raise AddressError(f"{text!r}: a path must follow 'unix:'")
    return UnixAddress(path)


def _parse_hybrid(text: str) -> HybridAddress:
    path, port = _split(text, text.removeprefix("hvsock:").removeprefix("//"))
    if not path.startswith("/") or "\0" in path:
        raise AddressError(f"{text!r}: an absolute path must follow 'hvsock://'")
    return HybridAddress(path, port)


def _split(text: str, rest: str) -> tuple[str, int]:
    where, colon, port_text = rest.rpartition(":")
    if not colon or not where:
        raise AddressError(f"{text!r}: an address is CID:PORT or NAME:PORT")
    if port_text == "any":
        return where, PORT_ANY
    return where, _number(text, "port", port_text)


def _parse_cid(text: str, where: str) -> int | None:
    """Return the CID that `where` says, or None if it is a guest's name."""
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


def _print_cid(cid: int) -> str:
    return "any" if cid == CID_ANY else str(cid)


def _print_port(port: int) -> str:
    return "any" if port == PORT_ANY else str(port)

"""Guests as OpenSSH's users write them, after the forms of systemd-ssh-proxy(1).

=========================  ======================================================================
``NAME``, ``NAME.vsock``   a guest of the switch
``vsock/CID``              a guest by its CID; also ``vsock/NAME``
``vsock-mux/PATH``         the hybrid socket of Firecracker or Cloud Hypervisor
``unix/PATH``              a Unix socket behind which sshd listens
=========================  ======================================================================

Each ``/`` behind the kind may be ``%`` or ``,``, because scp(1) and rsync(1) take a name with a slash for a file.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vsock._socket.transport import transport_for
from vsock.address import Address, NamedAddress, as_target
from vsock.control.client import ControlClient
from vsock.errors import AddressError, NoSwitch
from vsock.ssh.host_keys import pin_name
from vsock.transports import SwitchTransport

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.transports.unix import UnixAddress

__all__ = ["SUFFIX", "Host", "parse_host", "pinned_as"]

SUFFIX: Final = ".vsock"
"""What makes a guest's name one that no DNS server has."""

_SEPARATORS: Final = ("/", "%", ",")
_KINDS: Final = ("vsock-mux", "vsock", "unix")


@dataclass(frozen=True, slots=True)
class Host:
    """A place where an sshd is expected.

    Attributes:
        kind: `vsock`, `vsock-mux` or `unix`.
        place: a guest's name or CID, or the absolute path of a socket.
    """

    kind: str
    place: str

    def address(self, port: int) -> "str | UnixAddress":
        """The address of a port there, as `vsock.create_connection` takes it."""
        if self.kind == "vsock":
            return f"{self.place}:{port}"
        if self.kind == "vsock-mux":
            return f"hvsock://{self.place}:{port}"
        from vsock.transports.unix import UnixAddress

        return UnixAddress(self.place)


def parse_host(text: str) -> Host:
    """Read one of the forms of the module's table.

    Raises:
        AddressError: nothing is named.
    """
    for kind in _KINDS:
        if text.startswith(kind) and text[len(kind) : len(kind) + 1] in _SEPARATORS:
            place = text[len(kind) + 1 :]
            if not place:
                raise AddressError(f"{text}: nothing after {kind}")
            if kind != "vsock" and not place.startswith(("/", "./")):
                # As systemd does: a path is absolute unless it starts with a dot.
                place = f"/{place}"
            return Host(kind, place)
    return Host("vsock", text.removesuffix(SUFFIX))


def pinned_as(host: Host, port: int, transport: "Transport | str | None") -> str:
    """The name under which the keys of a host are pinned: of a guest one, by whatever form it is named.

    May ask the switch for the name of a CID.
    """
    target = as_target(host.address(port))
    where = transport_for(target, transport)
    if not isinstance(where, SwitchTransport) or not isinstance(target, Address | NamedAddress):
        return pin_name(host.place, f"/{host.kind}")
    guest = target.name if isinstance(target, NamedAddress) else str(target.cid)
    if isinstance(target, Address):
        try:
            guest = ControlClient(where.directory).guest(target.cid).name
        except NoSwitch:
            # A switch without a control API: there the CID is all that is known of a guest.
            return pin_name(guest, where.directory)
    return pin_name(guest, where.directory)

"""How commands connect: `create_connection`, with messages that say more than the errno."""

import socket
from typing import TYPE_CHECKING, Any

from vsock.address import CID_ANY, CID_HYPERVISOR, PORT_ANY, Address, NamedAddress, as_target
from vsock.errors import AddressError, NoSuchGuest, VsockError, no_guest

if TYPE_CHECKING:
    from vsock.address import Target
    from vsock.transports import Transport

__all__ = ["connect"]


def connect(
    address: "Target | str", timeout: float | None, transport: "Transport", **options: Any
) -> socket.socket:
    """As `vsock.create_connection`.

    Raises:
        AddressError: the address is only for listening.
        NoSuchGuest: with the names of the guests, if the switch can be asked.
    """
    from vsock import sockets

    target = as_target(address)
    _check(target)
    try:
        return sockets.create_connection(target, timeout, transport=transport, **options)
    except NoSuchGuest as error:
        raise _with_guests(error, target, transport) from None


def _check(target: "Target") -> None:
    if getattr(target, "port", 0) == PORT_ANY:
        raise AddressError(f"{target}: no port to connect to; `any` is only for listening")
    if isinstance(target, Address):
        if target.cid == CID_ANY:
            raise AddressError(f"{target}: no CID to connect to; `any` is only for listening")
        if target.cid == CID_HYPERVISOR:
            raise AddressError(f"{target}: CID 0 is the hypervisor, which has no services here")


def _with_guests(error: NoSuchGuest, target: "Target", transport: "Transport") -> NoSuchGuest:
    from vsock.control.client import ControlClient
    from vsock.transports import SwitchTransport

    if not isinstance(transport, SwitchTransport) or not isinstance(target, Address | NamedAddress):
        return error
    try:
        guests = ControlClient(transport.directory).guests()
    except VsockError:
        return error  # a userspace guest's node, or a switch without a control API
    who = target.name if isinstance(target, NamedAddress) else target.cid
    if any(who in (guest.name, guest.cid) for guest in guests):
        return error
    return no_guest(who, [guest.name for guest in guests])

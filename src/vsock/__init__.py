"""VSOCK in user space: sockets between virtual machines and their host, without kernel modules.

>>> import vsock
>>> with vsock.create_connection("web:80") as sock:  # guest "web" of the switch
...     sock.sendall(b"hello")

`socket`, `create_connection` and `create_server` block; `open_connection` and `start_server` are
their asyncio twins; `Guest` makes this process a guest of a switch, and `Switch` is one. This
module only gathers the public names.
"""

from typing import TYPE_CHECKING, Any

from vsock.address import (
    CID_ANY,
    CID_HOST,
    CID_HYPERVISOR,
    CID_LOCAL,
    PORT_ANY,
    VMADDR_CID_ANY,
    VMADDR_CID_HOST,
    VMADDR_CID_HYPERVISOR,
    VMADDR_CID_LOCAL,
    VMADDR_PORT_ANY,
    Address,
    HybridAddress,
    KernelAddress,
    NamedAddress,
    UnixAddress,
    parse,
)
from vsock.errors import (
    AccessDenied,
    AddressError,
    ConnectRefused,
    ConnectTimeout,
    NoSuchGuest,
    NoSwitch,
    ProtocolError,
    SwitchGone,
    TransportError,
    UsageError,
    VsockError,
)
from vsock.sockets import (
    SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    SO_VM_SOCKETS_BUFFER_MIN_SIZE,
    SO_VM_SOCKETS_BUFFER_SIZE,
    SO_VM_SOCKETS_CONNECT_TIMEOUT,
    SOCK_DGRAM,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    create_connection,
    create_server,
    get_local_cid,
    socket,
)

if TYPE_CHECKING:
    from vsock.aio import open_connection, start_server
    from vsock.guest import Guest
    from vsock.switch import Switch

__all__ = [
    "CID_ANY",
    "CID_HOST",
    "CID_HYPERVISOR",
    "CID_LOCAL",
    "PORT_ANY",
    "SOCK_DGRAM",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "SO_VM_SOCKETS_BUFFER_MAX_SIZE",
    "SO_VM_SOCKETS_BUFFER_MIN_SIZE",
    "SO_VM_SOCKETS_BUFFER_SIZE",
    "SO_VM_SOCKETS_CONNECT_TIMEOUT",
    "VMADDR_CID_ANY",
    "VMADDR_CID_HOST",
    "VMADDR_CID_HYPERVISOR",
    "VMADDR_CID_LOCAL",
    "VMADDR_PORT_ANY",
    "AccessDenied",
    "Address",
    "AddressError",
    "ConnectRefused",
    "ConnectTimeout",
    "Guest",
    "HybridAddress",
    "KernelAddress",
    "NamedAddress",
    "NoSuchGuest",
    "NoSwitch",
    "ProtocolError",
    "Switch",
    "SwitchGone",
    "TransportError",
    "UnixAddress",
    "UsageError",
    "VsockError",
    "create_connection",
    "create_server",
    "get_local_cid",
    "open_connection",
    "parse",
    "socket",
    "start_server",
]

# Imported when first used: asyncio and the native module cost more than all the rest together.
_LATE = {
    "Guest": "vsock.guest",
    "Switch": "vsock.switch",
    "open_connection": "vsock.aio",
    "start_server": "vsock.aio",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LATE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

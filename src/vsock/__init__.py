"""VSOCK in user space: sockets between virtual machines and their host, without kernel modules.

>>> import vsock
>>> with vsock.create_connection("web:80") as sock:  # guest "web" of the switch
...     sock.sendall(b"hello")

`socket`, `create_connection` and `create_server` block; `open_connection` and `start_server` are
their asyncio twins; `Guest` makes this process a guest of a switch, and `Switch` is one;
`guest_session` runs commands in a guest over SSH. This module only gathers the public names.
"""

TYPE_CHECKING = False  # as `typing` has it, whose import is most of what ours would cost
if TYPE_CHECKING:
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
        NamedAddress,
        parse,
    )
    from vsock.aio import open_connection, start_server
    from vsock.errors import (
        AccessDenied,
        AddressError,
        ConnectRefused,
        ConnectTimeout,
        CopyError,
        HostKeyChanged,
        KeyRefused,
        NoSuchGuest,
        NoSwitch,
        ProtocolError,
        SessionError,
        SwitchGone,
        TransportError,
        UsageError,
        VsockError,
    )
    from vsock.guest import Guest
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
    from vsock.ssh.session import guest_session
    from vsock.switch import Switch
    from vsock.transports.hvsock import HybridAddress
    from vsock.transports.kernel import KernelAddress
    from vsock.transports.unix import UnixAddress

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
    "CopyError",
    "Guest",
    "HostKeyChanged",
    "HybridAddress",
    "KernelAddress",
    "KeyRefused",
    "NamedAddress",
    "NoSuchGuest",
    "NoSwitch",
    "ProtocolError",
    "SessionError",
    "Switch",
    "SwitchGone",
    "TransportError",
    "UnixAddress",
    "UsageError",
    "VsockError",
    "create_connection",
    "create_server",
    "get_local_cid",
    "guest_session",
    "open_connection",
    "parse",
    "socket",
    "start_server",
]

# Imported when first used, so that a program pays for what it uses: addresses alone, sockets, asyncio, the
# native module. The `vsock` command starts in less time than all of it would take.
_NAMES = {
    "address": (
        "CID_ANY",
        "CID_HOST",
        "CID_HYPERVISOR",
        "CID_LOCAL",
        "PORT_ANY",
        "VMADDR_CID_ANY",
        "VMADDR_CID_HOST",
        "VMADDR_CID_HYPERVISOR",
        "VMADDR_CID_LOCAL",
        "VMADDR_PORT_ANY",
        "Address",
        "NamedAddress",
        "parse",
    ),
    "aio": ("open_connection", "start_server"),
    "errors": (
        "AccessDenied",
        "AddressError",
        "ConnectRefused",
        "ConnectTimeout",
        "CopyError",
        "HostKeyChanged",
        "KeyRefused",
        "NoSuchGuest",
        "NoSwitch",
        "ProtocolError",
        "SessionError",
        "SwitchGone",
        "TransportError",
        "UsageError",
        "VsockError",
    ),
    "guest": ("Guest",),
    "sockets": (
        "SO_VM_SOCKETS_BUFFER_MAX_SIZE",
        "SO_VM_SOCKETS_BUFFER_MIN_SIZE",
        "SO_VM_SOCKETS_BUFFER_SIZE",
        "SO_VM_SOCKETS_CONNECT_TIMEOUT",
        "SOCK_DGRAM",
        "SOCK_SEQPACKET",
        "SOCK_STREAM",
        "create_connection",
        "create_server",
        "get_local_cid",
        "socket",
    ),
    "ssh": ("guest_session",),
    "switch": ("Switch",),
    "transports.hvsock": ("HybridAddress",),
    "transports.kernel": ("KernelAddress",),
    "transports.unix": ("UnixAddress",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _NAMES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

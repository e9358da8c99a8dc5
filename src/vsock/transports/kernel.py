"""The transport `kernel`: the kernel's own AF_VSOCK, for programs inside a guest; and its addresses.

It is used only when somebody asks for it by name. The sockets themselves are in
`vsock._socket.kernel`.
"""

from typing import NamedTuple

from vsock._socket import connecting, listening, socket
from vsock._socket.transport import ConnectOptions, ListenOptions
from vsock._system.green import is_patched
from vsock._system.waiting import Steps
from vsock.address import (
    Target,
    parse_cid,
    print_cid,
    print_port,
    split_port,
)
from vsock.errors import AddressError, UsageError


class KernelAddress(NamedTuple):
    """An address, `cid` and `port`, in the kernel's own AF_VSOCK."""

    cid: int
    port: int

    @property
    def transport(self) -> str:
        """This one."""
        return "kernel"

    def __str__(self) -> str:
        """Return ``kernel:CID:PORT``."""
        return f"kernel:{print_cid(self.cid)}:{print_port(self.port)}"


def parse(text: str) -> KernelAddress:
    """Read ``kernel:CID:PORT``."""
    cid_text, port = split_port(text, text.removeprefix("kernel:").removeprefix("//"))
    cid = parse_cid(text, cid_text)
    if cid is None:
        raise AddressError(f"{text!r}: the kernel knows no names, {cid_text!r} must be a CID")
    return KernelAddress(cid, port)


class KernelTransport:
    """The kernel's own AF_VSOCK."""

    __slots__ = ()
    node = None

    def socket_class(self, kind: int, proto: int) -> type[socket]:
        """See `Transport`; the kernel itself checks type and protocol.

        Raises:
            UsageError: gevent or eventlet has patched this program: such a socket would stop all greenlets.
        """
        if is_patched():
            raise UsageError(
                "the transport 'kernel' does not work with gevent or eventlet; "
                "their own socket.socket(AF_VSOCK) does"
            )
        # Late, because few ask for it, and ctypes costs more to import than all the rest.
        from vsock._socket.kernel import KernelSocket

        return KernelSocket

    def connect(self, address: Target, options: ConnectOptions) -> Steps[socket]:
        """See `Transport`."""
        return connecting(socket(options.type, transport=self), address, options)

    def listen(self, address: Target, options: ListenOptions) -> socket:
        """See `Transport`; the kernel's listeners do not end with a switch."""
        return listening(socket(options.type, transport=self), address, options)

    def local_cid(self) -> int:
        """Return the CID of this machine as the kernel knows it."""
        from vsock._socket.kernel import local_cid

        return local_cid()


def default() -> KernelTransport:
    """Return the transport."""
    return KernelTransport()

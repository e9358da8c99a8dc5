"""The transport `switch`: sockets of a switch, or of a userspace guest.

What is said to it is in `vsock._client`, the sockets themselves are in `vsock._socket`.
"""

import errno
from socket import SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM
from typing import Final, NamedTuple

from vsock._client import Node
from vsock._socket import connecting, listening, socket
from vsock._socket.stream import StreamSocket
from vsock._socket.transport import ConnectOptions, ListenOptions
from vsock._system.waiting import Steps
from vsock.address import Target
from vsock.errors import state_error

_LARGEST_TYPE: Final = 10
"""The largest number that a socket type has (SOCK_PACKET)."""


class SwitchTransport(NamedTuple):
    """A switch, or a userspace guest, that serves programs in `directory`."""

    directory: str

    @property
    def node(self) -> Node:
        """The node that serves the directory."""
        return Node(self.directory)

    def socket_class(self, kind: int, proto: int) -> type[socket]:
        """See `Transport`: the errors are those of `vsock_create`."""
        kind &= 0xF
        if kind > _LARGEST_TYPE:
            raise state_error(errno.EINVAL)
        if proto not in (0, 40):
            raise state_error(errno.EPROTONOSUPPORT)
        if kind not in (SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM):
            raise state_error(errno.ESOCKTNOSUPPORT)
        if kind != SOCK_DGRAM:
            return StreamSocket
        # Late, because few programs need it.
        from vsock._socket.datagram import DatagramSocket

        return DatagramSocket

    def connect(self, address: Target, options: ConnectOptions) -> Steps[socket]:
        """See `Transport`."""
        return connecting(socket(options.type, transport=self), address, options)

    def listen(self, address: Target, options: ListenOptions) -> socket:
        """See `Transport`."""
        make = socket
        if options.reconnect:
            # Late, because few programs need it.
            from vsock._socket.reconnecting import ReconnectingListener

            make = ReconnectingListener
        return listening(make(options.type, transport=self), address, options)

    def local_cid(self) -> int:
        """Return the CID of the node that serves the directory."""
        return self.node.local_cid()


def default() -> SwitchTransport:
    """Return the switch of this user's runtime directory."""
    # Late, because programs that name a directory do not need it.
    from vsock.runtime import default_runtime_dir

    return SwitchTransport(str(default_runtime_dir()))

"""For libraries that take the path of a Unix socket, but no socket: a path that stands for a vsock address.

    with client_path("alpha:50051") as path:
        channel = grpc.insecure_channel(f"unix:{path}")

    with server_path(50051) as path:
        server.add_insecure_port(f"unix:{path}")

gRPC's wheel, the Docker SDK and gunicorn are such libraries. The socket is in a directory that only this user can enter, and goes
with the block. A thread of this process forwards its connections (`vsock.forwarding`); the bytes are moved by the
kernel. Each block is for all connections of a client or server: one for each call would cost a thread each.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vsock.address import CID_ANY, Address, as_target
from vsock.forwarding import BlockingForwarder
from vsock.transports.unix import UnixAddress

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.address import AddressLike

__all__ = ["client_path", "server_path"]


@contextmanager
def client_path(
    address: "AddressLike", *, transport: "Transport | str | None" = None, timeout: float = 10.0
) -> Iterator[Path]:
    """Give a path to connect to: what connects there is connected to `address`.

    The library sees a connection that is closed where `vsock.create_connection` would raise; the logger ``vsock`` says why.

    Args:
        address: in any form of `vsock.parse`.
        transport: where to connect from, as for `vsock.create_connection`.
        timeout: seconds that the other side has to answer.

    Raises:
        AddressError: `address` has none of the forms.
    """
    target = as_target(address)
    options = {"transport": transport, "seconds": timeout}
    with _new_path() as path, BlockingForwarder(UnixAddress(str(path)), target, **options):
        yield path


@contextmanager
def server_path(
    address: "AddressLike | int", *, transport: "Transport | str | None" = None
) -> Iterator[Path]:
    """Give a path to listen at: who connects to `address` is connected to what listens there.

    The server does not learn who its clients are. While nothing listens at the path, connections are reset.

    Args:
        address: as for `vsock.create_server`; a port means all CIDs that are ours.
        transport: where to listen, as for `vsock.create_server`.

    Raises:
        OSError: as `vsock.create_server` says.
        AddressError: `address` has none of the forms.
    """
    source = Address(CID_ANY, address) if isinstance(address, int) else as_target(address)
    with _new_path() as path:
        target = UnixAddress(str(path))
        with BlockingForwarder(source, target, transport=transport):
            yield path


@contextmanager
def _new_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vsock-", ignore_cleanup_errors=True) as directory:
        yield Path(directory) / "socket"

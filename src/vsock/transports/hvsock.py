"""The transport `hvsock`: the Unix sockets of Firecracker, Cloud Hypervisor and our own switch; and its addresses.

A guest is a Unix socket: a program that connects to it sends ``CONNECT <port>`` and reads ``OK
<port>``; the hypervisor closes the socket to refuse. What the guest sends to a port of the host
arrives at a Unix socket of the same path with ``_<port>`` at its end.
"""

import errno
import select
from typing import Final, NamedTuple

from vsock._socket import socket
from vsock._socket.transport import ConnectOptions, ListenOptions, only_verbs
from vsock._system.green import Base, adapted
from vsock._system.waiting import Steps, Wait
from vsock.address import (
    CID_ANY,
    CID_HOST,
    Address,
    Target,
    print_port,
    split_port,
)
from vsock.errors import AddressError, ProtocolError, UsageError, transport_error
from vsock.transports.unix import UnixListener, connect, deadline_of, wrapped

LONGEST_ANSWER: Final = 32
"""Bytes in the longest answer line that is still believed."""


class HybridAddress(NamedTuple):
    """A guest's `port` behind the Unix socket of its hypervisor at `path` (``CONNECT`` handshake)."""

    path: str
    port: int

    @property
    def transport(self) -> str:
        """This one."""
        return "hvsock"

    def __str__(self) -> str:
        """Return ``hvsock://PATH:PORT``."""
        return f"hvsock://{self.path}:{print_port(self.port)}"

    @property
    def listening_path(self) -> str:
        """Where a hypervisor looks for the host's listener on the port."""
        return f"{self.path}_{self.port}"


def parse(text: str) -> HybridAddress:
    """Read ``hvsock:///path:PORT`` or ``hvsock:/path:PORT``."""
    path, port = split_port(text, text.removeprefix("hvsock:").removeprefix("//"))
    if not path.startswith("/") or "\0" in path:
        raise AddressError(f"{text!r}: an absolute path must follow 'hvsock://'")
    return HybridAddress(path, port)


class HybridTransport:
    """The Unix sockets of hypervisors, at the paths that addresses name."""

    __slots__ = ()
    node = None

    def socket_class(self, kind: int, proto: int) -> type[socket]:
        """See `Transport`."""
        raise only_verbs("hvsock")

    def connect(self, address: Target, options: ConnectOptions) -> Steps[socket]:
        """See `Transport`: it is always a stream, and there is nothing to bind to.

        Raises:
            ConnectTimeout: there was no answer in time, or the queue was full so long.
            ConnectRefused, ProtocolError: as `parse_answer` says.
            OSError: there is no such Unix socket.
        """
        target, deadline = _checked(address), deadline_of(options.timeout)
        sock = yield from connect(target.path, target, deadline)
        try:
            Base.send(sock, b"CONNECT %d\n" % target.port)
            line = yield from _read_answer(sock, target, deadline)
            our_port = parse_answer(line, target)
        except BaseException:
            sock.close()
            raise
        return wrapped(sock, Address(CID_HOST, our_port), Address(CID_ANY, target.port))

    def listen(self, address: Target, options: ListenOptions) -> Base:
        """See `Transport`: these listeners do not end with a switch."""
        return adapted(UnixListener)(
            _checked(address).listening_path, options.type, options.backlog
        )

    def local_cid(self) -> int:
        """See `Transport`."""
        raise UsageError("the CID of a hypervisor's socket is not known")


def default() -> HybridTransport:
    """Return the transport."""
    return HybridTransport()


def _checked(address: Target) -> HybridAddress:
    if not isinstance(address, HybridAddress):
        raise AddressError(f"{address}: the transport 'hvsock' knows hvsock:///path:PORT only")
    return address


def _read_answer(sock: Base, address: HybridAddress, deadline: float) -> Steps[bytes]:
    """Return the line that comes, as far as it does."""
    line = b""
    # Byte by byte: what follows the line is the guest's data already.
    while not line.endswith(b"\n") and len(line) <= LONGEST_ANSWER:
        if not (yield Wait(sock, select.POLLIN, deadline)):
            raise transport_error(errno.ETIMEDOUT, f"connect to {address}")
        try:
            piece = Base.recv(sock, 1)
        except BlockingIOError:
            continue
        if not piece:
            break
        line += piece
    return line


def parse_answer(line: bytes, address: HybridAddress) -> int:
    """Return the port that a hypervisor's answer `line` gives us.

    Raises:
        ConnectRefused: the line is empty: the hypervisor closed the socket.
        ProtocolError: the line is not ``OK <port>``.
    """
    if not line:
        raise transport_error(errno.ECONNRESET, f"connect to {address}")
    word, _, number = line.removesuffix(b"\n").partition(b" ")
    is_whole = line.endswith(b"\n") and len(line) <= LONGEST_ANSWER
    if not (is_whole and word == b"OK" and number.isdigit() and int(number) <= 0xFFFFFFFF):
        raise ProtocolError(errno.EPROTO, f"{address.path}: expected 'OK <port>', got {line!r}")
    return int(number)

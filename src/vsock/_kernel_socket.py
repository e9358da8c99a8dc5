"""The kernel's own AF_VSOCK as a `socket.socket`, by libc calls: for programs inside a guest.

Python may have been built without AF_VSOCK, and then knows no address of the family; built with it, it
sets and gets 64-bit options only, so neither timeouts nor SO_LINGER. So the calls with an address or
an option are made here, and everything else is the base class's: a descriptor is a descriptor. Timeouts hold as for every Python socket, connect and accept included.

It has the methods of `vsock.socket` and raises the same errors, and is made in its place by
``vsock.socket(transport="kernel")``: only when somebody asked for it by name. Imports little, so that it can
be sent to a guest without the package.
"""

import ctypes
import errno
import math
import os
import select
import socket as _socket
import struct
import time
from collections.abc import Callable
from typing import Any, Final

from vsock.address import Address, KernelAddress, as_target
from vsock.errors import AddressError, UsageError, state_error, transport_error

AF_VSOCK: Final = 40

_IOCTL_GET_LOCAL_CID: Final = 0x7B9
_SOCKADDR: Final = struct.Struct("=HHIIB3x")
_CONNECT_TIMEOUT: Final = 6
_TIMEVAL: Final = struct.Struct("@ll")
_VERDICTS: Final = {errno.ENODEV, errno.ECONNRESET, errno.ETIMEDOUT, errno.ESOCKTNOSUPPORT}
"""How a connect ends that the other side, or nobody, answers; other errors are the caller's."""
_SOCK_CLOEXEC: Final = _socket.SOCK_CLOEXEC
_Base = _socket.socket
_libc: Final = ctypes.CDLL(None, use_errno=True)


class KernelSocket(_Base):
    """A socket of the kernel, used like `vsock.socket`; addresses with a CID are pairs or text.

    Args:
        type: `SOCK_STREAM`, `SOCK_SEQPACKET` or ``SOCK_DGRAM``.
        proto: 0, or 40.
        fileno: a descriptor that is such a socket already.

    Raises:
        OSError: as socket(2) says; EAFNOSUPPORT if the kernel has no AF_VSOCK.
    """

    __module__ = "vsock"
    __slots__ = ()

    def __init__(
        self,
        type: int = _socket.SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
        proto: int = 0,
        fileno: int | None = None,
    ) -> None:
        fd = fileno
        if fd is None:
            fd = _call(_libc.socket, AF_VSOCK, type | _SOCK_CLOEXEC, proto)
        try:
            super().__init__(AF_VSOCK, type & 0xF, proto, fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        if type & _socket.SOCK_NONBLOCK:
            self.setblocking(False)

    @classmethod
    def from_fd(cls, fd: int) -> "KernelSocket":
        """Make a socket of `fd`, an AF_VSOCK socket of the kernel, and own it; `UsageError` if it is none."""
        probe = _Base(fileno=fd)
        family, kind = probe.family, probe.type
        probe.detach()
        if family != AF_VSOCK:
            raise UsageError(f"descriptor {fd} is no AF_VSOCK socket of the kernel")
        return cls(kind, fileno=fd)

    @property
    def connect_timeout(self) -> float:
        """Seconds that `connect` gives the other side to answer, before it says ``ETIMEDOUT``.

        Setting it to what is no time raises `UsageError`.
        """
        value = self.getsockopt(AF_VSOCK, _CONNECT_TIMEOUT, _TIMEVAL.size)
        seconds, microseconds = _TIMEVAL.unpack(value)
        return float(seconds + microseconds / 1e6)

    @connect_timeout.setter
    def connect_timeout(self, seconds: float) -> None:
        if not 0 <= seconds < math.inf:  # the kernel takes some of these, for a time of its own
            raise UsageError(f"a connect timeout is a number of seconds, not {seconds!r}")
        # Rounded before it is split: the microseconds must stay below a million.
        value = _TIMEVAL.pack(*divmod(round(seconds * 1e6), 1_000_000))
        self.setsockopt(AF_VSOCK, _CONNECT_TIMEOUT, value)

    def bind(self, address: Any) -> None:
        """Take the CID and port of `address`, as the kernel allows it."""
        _call(_libc.bind, self.fileno(), *_packed(address))

    def connect(self, address: Any) -> None:
        """Connect to `address`, in the time that `settimeout` and `connect_timeout` allow.

        Raises:
            ConnectRefused, ConnectTimeout, NoSuchGuest: as `vsock.socket.connect`.
            OSError: as connect(2) says.
        """
        packed = _packed(address)
        try:
            _call(_libc.connect, self.fileno(), *packed)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS or self.gettimeout() == 0:
                raise
            self._wait(select.POLLOUT)
            self._raise_verdict()
        except OSError as error:
            if error.errno not in _VERDICTS:
                raise
            raise transport_error(error.errno, f"connect to {address}") from None

    def finish_connect(self) -> None:
        """Take the verdict of a non-blocking connect, after the socket became writable.

        Raises what `connect` would have raised, ``EALREADY`` if there is no verdict yet.
        """
        self._raise_verdict()
        try:
            self.getpeername()
        except OSError:
            raise state_error(errno.EALREADY) from None

    def _raise_verdict(self) -> None:
        number = self.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if number:
            raise transport_error(number, "connect")

    def connect_ex(self, address: Any) -> int:
        """Connect like `connect`, but return the errno, 0 for success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN
        return 0

    def accept(self) -> tuple["KernelSocket", Address]:
        """Wait for a connection: its socket, and the other side's address."""
        deadline = self._deadline()
        while True:
            if self.gettimeout():
                self._wait(select.POLLIN, deadline)
            room = ctypes.create_string_buffer(_SOCKADDR.size)
            length = ctypes.c_uint(_SOCKADDR.size)
            try:
                fd = _call(_libc.accept4, self.fileno(), room, ctypes.byref(length), _SOCK_CLOEXEC)
            except BlockingIOError:
                if not self.gettimeout():
                    raise
                continue
            accepted = KernelSocket(self.type, fileno=fd)
            accepted.settimeout(_socket.getdefaulttimeout())
            return accepted, _unpacked(room.raw)

    def getsockname(self) -> Address:
        """Return our address."""
        return self._name(_libc.getsockname)

    def getpeername(self) -> Address:
        """Return the other side's address."""
        return self._name(_libc.getpeername)

    def getsockopt(self, level: int, optname: int, buflen: int = 0, /) -> Any:
        """Return an option: a number, or `buflen` bytes at most.

        Where Python knows AF_VSOCK, its own can return 64-bit numbers only, and so no timeout.
        """
        is_size = level == AF_VSOCK
        room = ctypes.create_string_buffer(buflen or (8 if is_size else 4))
        length = ctypes.c_uint(len(room))
        _call(_libc.getsockopt, self.fileno(), level, optname, room, ctypes.byref(length))
        value = room.raw[: length.value]
        return value if buflen else int.from_bytes(value, "little", signed=not is_size)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int = 0, /) -> None:
        """Set an option: bytes, or a number (of 64 bits on level AF_VSOCK, else an int)."""
        if isinstance(value, int):
            value = value.to_bytes(8 if level == AF_VSOCK else 4, "little", signed=value < 0)
        given = None if value is None else bytes(value)
        length = optlen if given is None else len(given)
        _call(_libc.setsockopt, self.fileno(), level, optname, given, length)

    def dup(self) -> "KernelSocket":
        """Return another socket for the same connection."""
        twin = KernelSocket(self.type, fileno=_socket.dup(self.fileno()))
        twin.settimeout(self.gettimeout())
        return twin

    def _name(self, function: Callable[..., int]) -> Address:
        room = ctypes.create_string_buffer(_SOCKADDR.size)
        length = ctypes.c_uint(_SOCKADDR.size)
        _call(function, self.fileno(), room, ctypes.byref(length))
        return _unpacked(room.raw)

    def _deadline(self) -> float | None:
        timeout = self.gettimeout()
        return None if timeout is None else time.monotonic() + timeout

    def _wait(self, events: int, deadline: float | None = None) -> None:
        """Wait for one of `events` as long as the socket's timeout says."""
        if deadline is None:
            deadline = self._deadline()
        poller = select.poll()
        poller.register(self, events)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poller.poll(left):
            raise TimeoutError("timed out")


def kernel_local_cid() -> int:
    """Return the CID of this machine as its kernel says it.

    Raises:
        OSError: there is no ``/dev/vsock``.
    """
    import fcntl

    device = os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC)
    try:
        (cid,) = struct.unpack("=I", fcntl.ioctl(device, _IOCTL_GET_LOCAL_CID, bytes(4)))
    finally:
        os.close(device)
    return int(cid)


def _packed(address: Any) -> tuple[bytes, int]:
    target = as_target(address)
    if not isinstance(target, Address | KernelAddress):
        raise AddressError(f"{target}: the kernel's AF_VSOCK knows CIDs only")
    cid, port = Address(target.cid, target.port)
    return _SOCKADDR.pack(AF_VSOCK, 0, port, cid, 0), _SOCKADDR.size


def _unpacked(name: bytes) -> Address:
    _, _, port, cid, _ = _SOCKADDR.unpack(name)
    return Address(cid, port)


def _call(function: Callable[..., int], *arguments: Any) -> int:
    """Call libc, without the interpreter's lock; EINTR is tried again, but for connect."""
    while True:
        result = function(*arguments)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR or function is _libc.connect:
            raise state_error(number)

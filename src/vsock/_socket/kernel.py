"""`KernelSocket`: the kernel's own AF_VSOCK, by calls of libc: for programs inside a guest.

A Python that was built without AF_VSOCK knows no address of the family; one that was built with it
can set and get only 64-bit options, so neither timeouts nor SO_LINGER. So the calls with an address
or an option are made here, and all others are the base class's. Timeouts hold as for every Python
socket, for connect and accept too.

`vsock.socket(transport="kernel")` makes these: only when somebody asked for the kernel by name.
"""

import ctypes
import errno
import os
import select
import struct
import time
from collections.abc import Callable
from socket import (
    SO_ERROR,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOL_SOCKET,
    getdefaulttimeout,
)
from socket import dup as dup_descriptor
from typing import Any, Final, NoReturn, Self

from vsock._client import Node
from vsock._socket import a_kind, socket
from vsock._socket.options import AF_VSOCK, checked_timeout
from vsock._system.green import Base
from vsock._system.waiting import Steps, Wait, run, wait
from vsock.address import Address, Target, as_target
from vsock.errors import AddressError, UsageError, state_error, transport_error

_IOCTL_GET_LOCAL_CID: Final = 0x7B9
_SOCKADDR: Final = struct.Struct("=HHIIB3x")
_CONNECT_TIMEOUT: Final = 6
_TIMEVAL: Final = struct.Struct("@ll")
_OUTCOMES: Final = {errno.ENODEV, errno.ECONNRESET, errno.ETIMEDOUT, errno.ESOCKTNOSUPPORT}
"""How a connect ends that the other side answers, or nobody; other errors are the caller's."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


@a_kind
class KernelSocket(socket):
    """A socket of the kernel; `socket` documents the calls. Addresses have a CID, and no name."""

    __slots__ = ()

    def __init_subclass__(cls) -> NoReturn:
        raise UsageError(
            f"{cls.__name__} is a class for sockets of a switch; "
            "for the kernel's own call vsock.socket itself"
        )

    def _open(self, kind: int, proto: int, node: Node | None) -> None:
        fd = _call(_libc.socket, AF_VSOCK, kind | SOCK_CLOEXEC, proto)
        try:
            Base.__init__(self, AF_VSOCK, kind & 0xF, proto, fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        if kind & SOCK_NONBLOCK:
            self.setblocking(False)

    @classmethod
    def _from_fd(cls, fd: int, node: Node | None) -> Self:
        probe = Base(fileno=fd)
        family, kind = probe.family, probe.type
        probe.detach()
        if family != AF_VSOCK:
            raise UsageError(f"descriptor {fd} is no AF_VSOCK socket of the kernel")
        return cls._adopt(fd, kind)

    @classmethod
    def _adopt(cls, fd: int, kind: int) -> Self:
        """Make a socket of the descriptor `fd`, which the socket then owns."""
        made = Base.__new__(cls)
        Base.__init__(made, AF_VSOCK, kind, fileno=fd)
        return made

    def dup(self) -> "KernelSocket":
        twin = KernelSocket._adopt(dup_descriptor(self.fileno()), self.type)
        twin.settimeout(self.gettimeout())
        return twin

    @property
    def connect_timeout(self) -> float:
        value = self.getsockopt(AF_VSOCK, _CONNECT_TIMEOUT, _TIMEVAL.size)
        seconds, microseconds = _TIMEVAL.unpack(value)
        return float(seconds + microseconds / 1e6)

    @connect_timeout.setter
    def connect_timeout(self, seconds: float) -> None:
        # The kernel takes some numbers that are no times, for a time of its own.
        seconds = checked_timeout(seconds)
        # Rounded before it is split: the microseconds must stay below a million.
        value = _TIMEVAL.pack(*divmod(round(seconds * 1e6), 1_000_000))
        self.setsockopt(AF_VSOCK, _CONNECT_TIMEOUT, value)

    # A descriptor of the kernel's is all that these need.
    listen = Base.listen
    shutdown = Base.shutdown

    def bind(self, address: Any) -> None:
        """Take the CID and port of `address`, as the kernel allows it."""
        _call(_libc.bind, self.fileno(), *_packed(as_target(address)))

    def connect(self, address: Any) -> None:
        """Connect to `address`, in the time that `settimeout` and `connect_timeout` allow.

        Raises:
            ConnectRefused, ConnectTimeout, NoSuchGuest: as `vsock.socket.connect`.
            OSError: as connect(2) says.
        """
        timeout = self.gettimeout()
        if not self._begin_connect(as_target(address)):
            if timeout == 0:
                raise state_error(errno.EINPROGRESS)
            run(self._end_connect(timeout))

    def _connecting(self, address: Target, timeout: float | None) -> Steps[None]:
        if not self._begin_connect(address):
            yield from self._end_connect(timeout)

    def _begin_connect(self, target: Target) -> bool:
        """Connect, and tell whether that is done; if it is not, it goes on."""
        try:
            _call(_libc.connect, self.fileno(), *_packed(target))
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:
                raise
            return False
        except OSError as error:
            if error.errno not in _OUTCOMES:
                raise
            raise transport_error(error.errno, f"connect to {target}") from None
        return True

    def _end_connect(self, timeout: float | None) -> Steps[None]:
        """Wait for the outcome of a connect, and raise it if there is no connection."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if not (yield Wait(self, select.POLLOUT, deadline)):
            raise TimeoutError("timed out")
        self._raise_outcome()

    def finish_connect(self) -> None:
        self._raise_outcome()
        try:
            self.getpeername()
        except OSError:
            raise state_error(errno.EALREADY) from None

    def _raise_outcome(self) -> None:
        number = self.getsockopt(SOL_SOCKET, SO_ERROR)
        if number:
            raise transport_error(number, "connect")

    def accept(self) -> "tuple[socket, Address]":
        timeout = self.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if timeout and not wait(self, select.POLLIN, deadline):
                raise TimeoutError("timed out")
            room = ctypes.create_string_buffer(_SOCKADDR.size)
            length = ctypes.c_uint(_SOCKADDR.size)
            try:
                fd = _call(_libc.accept4, self.fileno(), room, ctypes.byref(length), SOCK_CLOEXEC)
            except BlockingIOError:
                if not timeout:
                    raise
                continue
            accepted = KernelSocket._adopt(fd, self.type)
            accepted.settimeout(getdefaulttimeout())
            return accepted, _unpacked(room.raw)

    def getsockname(self) -> Address:
        return self._name(_libc.getsockname)

    def getpeername(self) -> Address:
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

    def _name(self, function: Callable[..., int]) -> Address:
        room = ctypes.create_string_buffer(_SOCKADDR.size)
        length = ctypes.c_uint(_SOCKADDR.size)
        _call(function, self.fileno(), room, ctypes.byref(length))
        return _unpacked(room.raw)


def local_cid() -> int:
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


def _packed(target: Target) -> tuple[bytes, int]:
    # An `Address`, or one of a form that is the kernel's alone.
    cid, port = getattr(target, "cid", None), getattr(target, "port", None)
    if cid is None or port is None:
        raise AddressError(f"{target}: the kernel's AF_VSOCK knows CIDs only")
    cid, port = Address(cid, port)  # which checks both
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

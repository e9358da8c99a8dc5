"""Python's own socket class, `Base`; and programs that gevent or eventlet has patched.

Both libraries replace `socket.socket` with a class whose calls never block: while there is nothing
to do, other greenlets run. A `vsock.socket` does the same in such a program. `adapted` makes a
class like that of any class of ours at the moment a socket is made, so this package may be imported
before the patching or after it.
"""

import _socket as _c_socket
import functools
import select
import socket as _socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

_S = TypeVar("_S", bound=_socket.socket)
_NO_WAITING: Final = _socket.MSG_DONTWAIT | 0x2000  # MSG_ERRQUEUE


def _plain_class() -> Any:
    """Return Python's own class, whatever has been put in its place."""
    found = (it for it in _c_socket.socket.__subclasses__() if it.__module__ == "socket")
    return next(it for it in found if it.__name__ == "socket")


if TYPE_CHECKING:
    Base = _socket.socket
else:
    Base = _plain_class()


def is_patched() -> bool:
    """Tell whether the sockets of this program are green ones."""
    # Others are put there too, such as those of a proxy's library, but they are sockets.
    return _socket.socket is not Base and not issubclass(_socket.socket, Base)


def wait(fd: int, events: int, seconds: float | None) -> bool:
    """Wait until one of `events` (POLLIN or POLLOUT) is on `fd`, and let other greenlets run; False if none came in time."""
    poller = plain_poll()
    poller.register(fd, events)
    if poller.poll(0):
        return True
    if seconds is not None and seconds <= 0:
        return False
    is_reading = events == select.POLLIN
    try:
        if _socket.socket.__module__.startswith("gevent"):
            _gevent_wait(fd, is_reading, seconds)
        else:
            _eventlet_wait(fd, is_reading, seconds)
    except TimeoutError:
        return False
    return True


def _gevent_wait(fd: int, is_reading: bool, seconds: float | None) -> None:
    from gevent.socket import wait_read, wait_write

    (wait_read if is_reading else wait_write)(fd, seconds, TimeoutError())


def _eventlet_wait(fd: int, is_reading: bool, seconds: float | None) -> None:
    from eventlet.hubs import trampoline

    late = TimeoutError()
    trampoline(fd, read=is_reading, write=not is_reading, timeout=seconds, timeout_exc=late)


def plain_poll() -> Any:
    """Return a new object of `select.poll`, which gevent makes one that switches, and eventlet takes away."""
    return _plain_poll()() if is_patched() else select.poll()


@functools.cache
def _plain_poll() -> Callable[[], Any]:
    if not hasattr(select, "poll"):
        from eventlet.patcher import original

        return original("select").poll  # type: ignore[no-any-return]
    from gevent.monkey import get_original

    return get_original("select", "poll")  # type: ignore[no-any-return]


@functools.cache
def _green_class(plain: Any) -> Any:
    names = {"__slots__": ("_allowed",), "__module__": plain.__module__, "__doc__": plain.__doc__}
    return type(plain.__name__, (_Green, plain), names)


def adapted(cls: type[_S]) -> type[_S]:
    """Return the class to make a socket of in place of `cls`: itself, unless this program is patched."""
    if not is_patched() or issubclass(cls, _Green):
        return cls
    made: type[_S] = _green_class(cls)  # type: ignore[arg-type]
    return made


class _Green(Base):
    """The calls that may block. The descriptor never does; how long a call may take is kept here."""

    __slots__ = ()
    _allowed: float | None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.settimeout(super().gettimeout())

    @property
    def timeout(self) -> float | None:
        """The same as `gettimeout`."""
        return self.gettimeout()

    def gettimeout(self) -> float | None:
        """Return how long calls wait, in seconds; None: for ever."""
        return getattr(self, "_allowed", None)

    def getblocking(self) -> bool:
        """Tell whether calls wait at all."""
        return self.gettimeout() != 0

    def settimeout(self, value: Any, /) -> None:
        """Set how long calls wait, in seconds; None: for ever."""
        super().settimeout(value)  # which looks at it
        self._allowed = super().gettimeout()
        super().settimeout(0)

    def setblocking(self, flag: bool, /) -> None:
        """Let calls wait for ever, or not at all."""
        self.settimeout(None if flag else 0.0)

    def accept(self) -> Any:
        """As without greenlets."""
        return self._patiently(select.POLLIN, 0, super().accept)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As without greenlets."""
        got: bytes = self._patiently(select.POLLIN, flags, super().recv, bufsize, flags)
        return got

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As without greenlets."""
        call = super().recv_into
        got: int = self._patiently(select.POLLIN, flags, call, buffer, nbytes, flags)
        return got

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """As without greenlets."""
        call = super().recvmsg
        return self._patiently(select.POLLIN, flags, call, bufsize, ancbufsize, flags)

    def recvmsg_into(self, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
        """As without greenlets."""
        buffers, call = list(buffers), super().recvmsg_into
        return self._patiently(select.POLLIN, flags, call, buffers, ancbufsize, flags)

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As without greenlets."""
        sent: int = self._patiently(select.POLLOUT, flags, super().send, data, flags)
        return sent

    def sendmsg(
        self, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        """As without greenlets."""
        buffers, call = list(buffers), super().sendmsg
        sent: int = self._patiently(select.POLLOUT, flags, call, buffers, ancdata, flags, address)
        return sent

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """As without greenlets: all of it within the timeout."""
        if self.type != _socket.SOCK_STREAM:
            self.send(data, flags)
            return
        deadline, rest = self._deadline(), memoryview(data).cast("B")
        while True:
            call = super().send
            sent = self._patiently(select.POLLOUT, flags, call, rest, flags, deadline=deadline)
            rest = rest[sent:]
            if not rest:
                return

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file's bytes, piece by piece."""
        sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
        return sent

    def _deadline(self) -> float | None:
        allowed = self.gettimeout()
        return None if allowed is None else time.monotonic() + allowed

    def _patiently(
        self,
        events: int,
        flags: int,
        call: Callable[..., Any],
        *arguments: Any,
        deadline: float | None = None,
    ) -> Any:
        """Make a call that does not block, again and again, for as long as the timeout says."""
        if deadline is None:
            deadline = self._deadline()
        while True:
            try:
                return call(*arguments)
            except BlockingIOError:
                if self.gettimeout() == 0 or flags & _NO_WAITING:
                    raise
            left = None if deadline is None else deadline - time.monotonic()
            if not wait(self.fileno(), events, left):
                raise TimeoutError("timed out")

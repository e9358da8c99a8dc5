"""`multiprocessing.connection` over vsock: Python objects between programs of the host and of guests.

    with Listener(6000, authkey=key) as listener, listener.accept() as connection:
        print(connection.recv())

    with Client("host:6000", authkey=key) as connection:
        connection.send({"any": "object"})

The connections are `multiprocessing.connection.Connection`, so `multiprocessing.connection.wait` takes them; the other
end may be the standard library's, such as its Listener of family AF_VSOCK in a Linux guest.

`recv` unpickles what the other side sent, which can run any code of its choice here. So receive objects only from programs
that you would let run on this machine, and from others `recv_bytes`. The authkey keeps out those who do not have
it, and nobody else.
"""

import threading
from contextlib import contextmanager, suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from socket import SHUT_RDWR
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vsock.sockets import create_connection, create_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vsock._socket import socket
    from vsock._socket.transport import Transport
    from vsock.address import Address, AddressLike

__all__ = ["AUTHENTICATION_SECONDS", "Client", "Listener"]

AUTHENTICATION_SECONDS: Final = 10.0
"""How long both sides may take to show that they have the authkey."""

_FAILURES: Final = (AuthenticationError, EOFError, OSError, AssertionError, ValueError)
"""What the standard library raises, depending on how the other side fails."""


class Listener:
    """Accepts connections at a vsock port; use it as a `multiprocessing.connection.Listener`.

    Args:
        address: as for `vsock.create_server`; a port means all CIDs that are ours.
        authkey: what both sides must have; None: everyone may connect.
        backlog: how many connections may wait.
        transport: where to listen, as for `vsock.create_server`.

    Raises:
        OSError: as `vsock.create_server` says.
        TypeError: `authkey` is no bytes.
    """

    def __init__(
        self,
        address: "AddressLike | int",
        *,
        authkey: bytes | None = None,
        backlog: int = 16,
        transport: "Transport | str | None" = None,
    ) -> None:
        self._authkey = _checked(authkey)
        self._listener: Any = create_server(address, backlog=backlog, transport=transport)
        self._last_accepted: Address | None = None

    @property
    def address(self) -> "Address":
        """Where it listens."""
        found: Address = self._listener.getsockname()
        return found

    @property
    def last_accepted(self) -> "Address | None":
        """Where the last connection came from, also one without the authkey."""
        return self._last_accepted

    def accept(self) -> "Connection[Any, Any]":
        """Wait for a connection.

        One that does not have the authkey is closed; the next call goes on with others.

        Raises:
            AuthenticationError: the other side does not have the authkey, broke the connection, or did not answer within
                `AUTHENTICATION_SECONDS`.
            OSError: as `vsock.socket.accept` says.
        """
        sock, self._last_accepted = self._listener.accept()
        if self._authkey is None:
            return _made_of(sock)
        with _authenticating(sock) as connection:
            deliver_challenge(connection, self._authkey)
            answer_challenge(connection, self._authkey)
        return connection

    def close(self) -> None:
        """Accept no more; connections go on."""
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def Client(  # noqa: N802 - the name that multiprocessing gives it
    address: "AddressLike",
    *,
    authkey: bytes | None = None,
    timeout: float | None = None,
    transport: "Transport | str | None" = None,
) -> "Connection[Any, Any]":
    """Connect to a `Listener`, ours or the standard library's.

    Args:
        address: as for `vsock.create_connection`.
        authkey: what both sides must have; None: the listener wants none.
        timeout: seconds that the other side has to answer (default: 2).
        transport: where to connect from, as for `vsock.create_connection`.

    Raises:
        OSError: as `vsock.create_connection` says.
        AuthenticationError: as `Listener.accept` says.
        TypeError: `authkey` is no bytes.
    """
    _checked(authkey)
    sock = create_connection(address, timeout, transport=transport)
    sock.settimeout(None)
    if authkey is None:
        return _made_of(sock)
    with _authenticating(sock) as connection:
        answer_challenge(connection, authkey)
        deliver_challenge(connection, authkey)
    return connection


def _checked(authkey: Any) -> bytes | None:
    if authkey is not None and not isinstance(authkey, bytes):
        raise TypeError(f"an authkey is bytes, not {type(authkey).__name__}")
    return authkey


def _made_of(sock: "socket") -> "Connection[Any, Any]":
    """Return a connection that owns the socket's descriptor."""
    return Connection(sock.detach())


@contextmanager
def _authenticating(sock: "socket") -> "Iterator[Connection[Any, Any]]":
    """Give a connection made of `sock`, which is closed if that fails or takes too long."""
    peer = sock.getpeername()
    connection = _made_of(sock.dup())
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        with suppress(OSError):  # it has ended by itself
            sock.shutdown(SHUT_RDWR)

    timer = threading.Timer(AUTHENTICATION_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield connection
    except _FAILURES as error:
        connection.close()
        reason = str(error) or "it ended the connection"
        if is_late.is_set():
            reason = f"no answer within {AUTHENTICATION_SECONDS:g} s"
        raise AuthenticationError(f"{peer} is not authenticated: {reason}") from error
    except BaseException:
        connection.close()
        raise
    finally:
        timer.cancel()
        timer.join()
        sock.close()

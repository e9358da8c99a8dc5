"""Serves the clients of a proxy: reads what each asks for, decides, connects, and logs.

A connection has three parts, each with its deadline: the client says what it wants; the host is found and connected to; then
the bytes are copied by `vsock.forwarding`, for as long as the two ends like and some move.
"""

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vsock.address import Address
from vsock.forwarding import ends
from vsock.forwarding.acceptor import Acceptor, places
from vsock.forwarding.splicing import reset
from vsock.proxy.clients import Client, Clients, Limits
from vsock.proxy.connection import Connection
from vsock.proxy.credentials import Credentials
from vsock.proxy.guests import GuestNames
from vsock.proxy.log import Entry
from vsock.proxy.request import Reason, Refusal, Request
from vsock.proxy.resolver import Resolver, address_of, is_own
from vsock.proxy.rules import Rules

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.address import Target

__all__ = ["Proxy", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a proxy does.

    Attributes:
        rules: who may be reached.
        credentials: headers that are added to plain HTTP requests.
        guests: only these, by their names; None for all that the switch lets connect.
        names: returns the names of guests by CID; runs in a thread.
        limits: of each client.
        connections: of all clients together.
        seconds: until a client has said what it wants, until the host is connected to, and until it answers a plain request.
        idle_seconds: for which a connection may carry no bytes; it ends before twice as many.
    """

    rules: Rules
    credentials: Credentials = field(default_factory=dict)
    guests: Collection[str] | None = None
    names: Callable[[], Mapping[int, str]] = dict
    limits: Limits = field(default_factory=Limits)
    connections: int = 1024
    seconds: float = 10.0
    idle_seconds: float = 3600.0


class Proxy:
    """Serves as long as its block lasts.

    Args:
        listeners: where it listens.
        settings: what it does.
        write: writes an entry of the log; when it fails, so does the request and the proxy, because nothing may go unseen.
        transport: of listeners that belong to none, as for `vsock.create_connection`.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        listeners: "Sequence[ends.TcpEnd | Target]",
        settings: Settings,
        write: Callable[[Entry], None],
        *,
        transport: "Transport | str | None" = None,
    ) -> None:
        self._settings = settings
        self._write = write
        self._clients = Clients(settings.limits)
        self._names = GuestNames(settings.names)
        self._resolver = Resolver()
        self._numbers = itertools.count(1)
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stack = AsyncExitStack()
        all_places = places(settings.connections)
        self._acceptors = [
            Acceptor(end, self._serving(str(end)), places=all_places, transport=transport)
            for end in listeners
        ]

    @property
    def addresses(self) -> list[str]:
        """Where it listens, with the ports that were free."""
        return [acceptor.address for acceptor in self._acceptors]

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for acceptor in self._acceptors:
                await stack.enter_async_context(acceptor)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
        if not self._broken.cancel():
            self._broken.exception()  # has been seen, if anybody waited

    async def wait(self) -> None:
        """Wait until it cannot go on.

        Raises:
            OSError: why: a listener is gone, or the log cannot be written.
        """
        waiting = [asyncio.ensure_future(acceptor.wait()) for acceptor in self._acceptors]
        try:
            await asyncio.wait([self._broken, *waiting], return_when=asyncio.FIRST_COMPLETED)
            for one in (self._broken, *waiting):
                if one.done():
                    one.result()
        finally:
            for one in waiting:
                one.cancel()

    def _serving(self, listener: str) -> Any:
        async def serve(caller: socket.socket, peer: Any) -> None:
            key = peer.cid if isinstance(peer, Address) else listener
            client = self._clients.enter(key)
            if client is None:
                reset(caller)
                caller.close()
                return
            connection = Connection(caller, client, listener, next(self._numbers))
            try:
                await self._serve(connection)
            finally:
                self._clients.leave(client)
                caller.close()

        return serve

    async def _serve(self, connection: Connection) -> None:
        """Serve a client from its first byte to the entry in the log."""
        has_asked = True
        try:
            has_asked = await self._carry_out(connection)
        except Refusal as error:
            connection.refusal = error
            await connection.answer_refusal()
        except OSError as error:
            connection.loss = error.strerror or str(error) or "no answer in time"
        except asyncio.CancelledError:
            connection.loss = "the proxy ended"
            raise
        except BaseException as error:
            connection.loss = f"a fault of the proxy: {type(error).__name__}"
            raise
        finally:
            if has_asked:
                self._log(connection.entry())

    async def _carry_out(self, connection: Connection) -> bool:
        """Do what the client asks for; returns whether it asked for anything."""
        seconds = self._settings.seconds
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(self._clients.delay(connection.client, now))
        if connection.cid is not None:
            connection.guest = await self._names.name_of(connection.cid)
        try:
            async with asyncio.timeout(seconds):
                request = await connection.read_request()
        except TimeoutError:
            raise Refusal(Reason.MALFORMED, f"no whole request within {seconds:g} s") from None
        if request is None:
            return False
        self._check_guest(connection)
        self._settings.rules.check(request)
        callee = await self._connect(connection.client, request)
        idle = self._settings.idle_seconds
        try:
            if not self._log(connection.opened()):
                raise Refusal(Reason.INTERNAL, "the log of this proxy cannot be written")
            if request.protocol == "http":
                added = self._settings.credentials.get((request.host, request.port), ())
                await connection.exchange(callee, added, seconds, idle)
            else:
                await connection.join(callee, seconds, idle)
        finally:
            callee.close()
        return True

    def _check_guest(self, connection: Connection) -> None:
        """Guests are let in by their names. A listener without CIDs is for whoever reaches it."""
        guests = self._settings.guests
        if guests is not None and connection.cid is not None and connection.guest not in guests:
            raise Refusal(Reason.FORBIDDEN, "this proxy is for other guests")

    async def _connect(self, client: Client, request: Request) -> socket.socket:
        seconds = self._settings.seconds
        try:
            async with asyncio.timeout(seconds):
                found = await self._resolver.resolve(client, request)
                addresses = [(address_of(one), is_own(one)) for one in found]
                allowed = self._settings.rules.check_addresses(request, addresses)
                return await ends.connect_first([found[index] for index in allowed])
        except TimeoutError:
            raise Refusal(
                Reason.TIMED_OUT, f"{request.target}: no answer within {seconds:g} s"
            ) from None
        except OSError as error:
            is_refused = error.errno == errno.ECONNREFUSED
            # The words of asyncio have the address, which the client need not know.
            raise Refusal(
                Reason.CONNECTION_REFUSED if is_refused else Reason.UNREACHABLE,
                f"{request.target}: {os.strerror(error.errno or errno.EHOSTUNREACH)}",
                str(error),
            ) from None

    def _log(self, entry: Entry) -> bool:
        """Write an entry of the log; returns whether it is written. If it is not, the proxy ends."""
        try:
            self._write(entry)
        except OSError as error:
            if not self._broken.done():
                self._broken.set_exception(error)
            return False
        return True

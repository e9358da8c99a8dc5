"""DNS on the host, within limits: the resolver of the C library blocks a thread for as long as a name's servers like.

So each lookup has a thread of its own, and its places are free again when that thread ends, not when its client has given up.
"""

import asyncio
import socket
import threading
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final

from vsock.proxy.addresses import IPAddress
from vsock.proxy.clients import Client
from vsock.proxy.request import Reason, Refusal, Request

__all__ = ["Found", "Resolver", "address_of", "is_own"]

Found = tuple[int, int, int, str, Any]
"""An address as getaddrinfo(3) returns it."""

_MOST_LOOKUPS: Final = 64
_MOST_ADDRESSES: Final = 16


class Resolver:
    """Looks names up."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_MOST_LOOKUPS)

    async def resolve(self, client: Client, request: Request) -> list[Found]:
        """Return the addresses of the request's host, some of them if there are many.

        Raises:
            Refusal: there are none.
        """
        await client.lookups.acquire()
        try:
            await self._places.acquire()
        except BaseException:
            client.lookups.release()
            raise
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[list[Found]] = loop.create_future()

        def deliver(found: list[Found] | Exception) -> None:
            client.lookups.release()
            self._places.release()
            if answered.done():
                return  # nobody waits any more
            if isinstance(found, Exception):
                answered.set_exception(found)
            else:
                answered.set_result(found)

        def look_up() -> None:
            found: list[Found] | Exception
            try:
                found = list(
                    socket.getaddrinfo(str(request.host), request.port, type=socket.SOCK_STREAM)
                )
            except (OSError, UnicodeError) as error:
                found = error
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(deliver, found)

        try:
            threading.Thread(target=look_up, name="vsock-resolver", daemon=True).start()
        except RuntimeError:
            client.lookups.release()
            self._places.release()
            raise Refusal(
                Reason.INTERNAL, f"{request.host} cannot be looked up now", "no thread"
            ) from None
        try:
            return (await answered)[:_MOST_ADDRESSES]
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise Refusal(
                Reason.NO_SUCH_HOST, f"{request.host} has no address", reason or str(error)
            ) from None


def address_of(found: Found) -> IPAddress:
    """The IP address of a socket address."""
    return ip_address(found[4][0])


def is_own(found: Found) -> bool:
    """Whether an address is one of this machine's: then the kernel connects to it from itself. Nothing is sent."""
    family, _, _, _, address = found
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address)
        except OSError:
            return False  # there is no way to it
        return bool(sock.getsockname()[0] == address[0])

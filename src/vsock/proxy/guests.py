"""The names of guests, for the log and to let only some in: asked of the switch, and known for a second.

For no longer, because a CID can be given to another guest. A CID without a name is asked for at once.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from vsock.address import CID_HOST
from vsock.control.client import ControlClient
from vsock.errors import TransportError

__all__ = ["GuestNames", "names_from"]

_KNOWN_SECONDS: Final = 1.0


class GuestNames:
    """The names of a switch's guests by CID.

    Args:
        ask: returns them; runs in a thread.
    """

    def __init__(self, ask: Callable[[], Mapping[int, str]]) -> None:
        self._ask = ask
        self._names: Mapping[int, str] = {}
        self._until = 0.0
        self._asking = asyncio.Lock()

    async def name_of(self, cid: int) -> str | None:
        """The name of a guest; None if none is known."""
        clock = asyncio.get_running_loop().time
        async with self._asking:
            if clock() >= self._until or cid not in self._names:
                self._names = await asyncio.to_thread(self._ask)
                self._until = clock() + _KNOWN_SECONDS
            return self._names.get(cid)


def names_from(client: ControlClient) -> Callable[[], Mapping[int, str]]:
    """How to ask a switch. If it does not tell, no guest has a name, and so none is let in by its name."""

    def ask() -> Mapping[int, str]:
        try:
            guests = client.guests()
        except TransportError:
            # It has no control API, or has ended, which the listener tells.
            return {}
        return {CID_HOST: "host"} | {guest.cid: guest.name for guest in guests}

    return ask

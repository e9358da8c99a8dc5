"""What each client of a proxy uses of it, and its limits: connections, lookups of names, requests in a second.

A client is a guest, by its CID; or all that come by one listener that has no CIDs.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Client", "Clients", "Limits"]

_BURST_SECONDS: Final = 10.0
_MOST_KNOWN: Final = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may use.

    Attributes:
        connections: at once; more are closed without an answer, and counted.
        lookups: names that are being resolved at once; others wait.
        rate: requests in a second, on average over ten seconds; others wait. It bounds what a client adds to the log.
    """

    connections: int = 64
    lookups: int = 8
    rate: float = 50.0


@dataclass(slots=True, eq=False)
class Client:
    """One client, as long as it has connections or is not forgotten.

    Attributes:
        key: a CID, or the listener by which it came.
        lookups: places for names that are being resolved.
        connections: now.
        turned_away: connections that were too many, since the last request.
        paid_until: to when on the loop's clock its requests use up its rate.
    """

    key: int | str
    lookups: asyncio.Semaphore
    connections: int = 0
    turned_away: int = 0
    paid_until: float = field(default=0.0)

    def take_turned_away(self) -> int:
        """How many connections were too many since the last call."""
        count, self.turned_away = self.turned_away, 0
        return count


class Clients:
    """All clients; those without connections are forgotten, the oldest first, when there are many."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: OrderedDict[int | str, Client] = OrderedDict()

    def enter(self, key: int | str) -> Client | None:
        """Count a connection of a client in, or None if it has too many; `leave` counts it out."""
        client = self._known.get(key)
        if client is None:
            client = Client(key, asyncio.Semaphore(self._limits.lookups))
            self._known[key] = client
            self._forget()
        self._known.move_to_end(key)
        if client.connections >= self._limits.connections:
            client.turned_away += 1
            return None
        client.connections += 1
        return client

    def leave(self, client: Client) -> None:
        """Count a connection out."""
        client.connections -= 1

    def delay(self, client: Client, now: float) -> float:
        """Count a request, and return the seconds that it has to wait: not many, because its connection waits with it."""
        since = max(client.paid_until, now)
        client.paid_until = since + 1 / self._limits.rate
        return max(0.0, since - now - _BURST_SECONDS)

    def _forget(self) -> None:
        idle = [key for key, one in self._known.items() if not one.connections]
        for key in idle[: max(0, len(self._known) - _MOST_KNOWN)]:
            del self._known[key]

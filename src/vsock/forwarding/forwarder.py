"""Makes each connection that is accepted at one end a connection to the other."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vsock.forwarding import ends
from vsock.forwarding.acceptor import Acceptor, places
from vsock.forwarding.splicing import Carried, join

if TYPE_CHECKING:
    from vsock._socket.transport import Transport
    from vsock.address import Target

__all__ = ["Forwarder", "Refused"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection that came to nothing, or was lost.

    Attributes:
        peer: where it came from.
        reason: why it ended.
        is_lost: whether it had been open, and then one side ended it with an error.
    """

    peer: str
    reason: str
    is_lost: bool = False


class Forwarder:
    """Forwards connections as long as its block lasts.

    Args:
        source: where it listens.
        target: where each connection leads.
        transport: of addresses that belong to none, as for `vsock.create_connection`.
        seconds: how long the target may take to answer.
        most: connections at once; others wait in the queue of the listener.
        tell: called for each connection that came to nothing or was lost.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(
        self,
        source: "ends.TcpEnd | Target",
        target: "ends.TcpEnd | Target",
        *,
        transport: "Transport | str | None" = None,
        seconds: float = 10.0,
        most: int = 4096,
        tell: Callable[[Refused], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._target = target
        self._transport = transport
        self._seconds = seconds
        self._tell = tell
        self._acceptor = Acceptor(source, self._serve, places=places(most), transport=transport)

    @property
    def total(self) -> int:
        """Connections so far."""
        return self._acceptor.total

    @property
    def open(self) -> int:
        """Connections now."""
        return self._acceptor.open

    @property
    def address(self) -> str:
        """Where it listens, with the port that was free."""
        return self._acceptor.address

    async def __aenter__(self) -> Self:
        await self._acceptor.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._acceptor.__aexit__(kind, error, traceback)

    async def wait(self) -> None:
        """Wait until it cannot accept any more.

        Raises:
            OSError: why, such as SwitchGone.
        """
        await self._acceptor.wait()

    async def _serve(self, caller: socket.socket, address: Any) -> None:
        peer = str(address or self._source)
        try:
            callee = await ends.connect(self._target, self._transport, self._seconds)
        except BaseException as error:
            # The reason is told before the caller sees the end.
            with caller:
                if not isinstance(error, OSError):
                    raise
                reason = error.strerror or str(error) or f"no answer within {self._seconds:g} s"
                self._tell(Refused(peer, f"{self._target}: {reason}"))
                return
        try:
            await join(caller, callee, Carried())
        except OSError as error:
            self._tell(Refused(peer, error.strerror or str(error), is_lost=True))

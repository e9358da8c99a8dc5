"""What all descriptors of one VSOCK socket have in common: its state, addresses and options.

`dup` makes a second Python object for the same socket of the switch, and what one of them does (a
shutdown, an option) holds for the other. So both share one `Life`. No I/O here.
"""

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from vsock._options import VsockOptions
from vsock.address import CID_ANY, PORT_ANY, Address

if TYPE_CHECKING:
    from vsock.transports import SwitchTransport

UNKNOWN: Final = Address(CID_ANY, PORT_ANY)

RECEIVING: Final = 1
"""Bit of `Life.shut`: our user receives no more."""
SENDING: Final = 2
"""Bit of `Life.shut`: our user sends no more."""


class State(Enum):
    """How far a socket has come; SHUT_DOWN is after any `shutdown`."""

    FRESH = auto()
    BOUND = auto()
    LISTENING = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    SHUT_DOWN = auto()


class Life:
    """One VSOCK socket, whatever number of descriptors it has.

    Attributes:
        is_attached: the descriptor leads to the switch.
        has_stream: the descriptor is the connection, and not the way to the switch.
        send_buffer: of the descriptor; not 0 while it is made small for a connect.
        has_begun: of a non-blocking connect: the switch has said that it is under way.
        error: how a connect ended, until somebody asks about it.
        shut: `RECEIVING` and `SENDING`, where the user has shut a direction.
        flow: the connection's number in the switch.
        peer_buffer: the other side's receive buffer when it was last heard of, in bytes.
        backlog: of a listener.
        low_water: SO_RCVLOWAT.
        wants_zerocopy: SO_ZEROCOPY, which no connection here has.
    """

    __slots__ = (
        *("state", "transport", "ours", "theirs", "options", "is_attached", "has_stream"),
        *("send_buffer", "error", "shut", "flow", "peer_buffer", "backlog", "low_water"),
        *("has_begun", "wants_zerocopy"),
    )

    def __init__(self, state: State, transport: "SwitchTransport | None" = None) -> None:
        self.state = state
        self.transport = transport
        self.ours = self.theirs = UNKNOWN
        self.options = VsockOptions()
        self.is_attached = False
        self.has_stream = False
        self.send_buffer = 0
        self.error: OSError | None = None
        self.shut = 0
        self.flow = 0
        self.peer_buffer = 0
        self.backlog = 0
        self.low_water = 1
        self.wants_zerocopy = False
        self.has_begun = False

    @classmethod
    def connected(
        cls, ours: Address, theirs: Address, transport: "SwitchTransport | None" = None
    ) -> "Life":
        """Return the life of a socket whose descriptor is a connection already."""
        life = cls(State.CONNECTED, transport)
        life.ours, life.theirs, life.has_stream = ours, theirs, True
        return life

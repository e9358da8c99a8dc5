"""What one process knows of a VSOCK socket, beside what is kept in the socket (`vsock._note`).

`dup` makes a second Python object for the same socket, and both share one `Life`. What another process
may change (the state, an error, what is shut) is only remembered here from the last look at the note. No I/O.
"""

import _thread
from typing import TYPE_CHECKING, Final

from vsock._note import (
    ATTACHED,
    END_TOLD,
    LOW_WATER,
    NO_RECEIVING,
    NO_SENDING,
    STREAM,
    ZEROCOPY,
    Note,
    State,
)
from vsock._options import VsockOptions
from vsock.address import CID_ANY, PORT_ANY, Address

if TYPE_CHECKING:
    from vsock.transports import SwitchTransport

UNKNOWN: Final = Address(CID_ANY, PORT_ANY)


class Life:
    """One VSOCK socket, whatever number of descriptors it has.

    Attributes:
        note: what the socket's note was at the last look.
        transport: where the socket lives; None for one that needs no switch.
        ours: our address, as far as it is known.
        theirs: the other side's.
        options: those of level AF_VSOCK.
        error: the exception for the errno in the note, if this process met it.
        flow: the number of a datagram socket in the switch.
        peer_buffer: the other side's receive buffer when it was last heard of, in bytes.
        low_water: SO_RCVLOWAT.
        turn: held by the thread that begins a connect, or looks how one ended.
    """

    __slots__ = (
        *("note", "transport", "ours", "theirs", "options", "error", "flow", "peer_buffer"),
        *("low_water", "turn"),
    )

    def __init__(self, note: Note, transport: "SwitchTransport | None" = None) -> None:
        self.note = note
        self.transport = transport
        self.ours = self.theirs = UNKNOWN
        self.options = VsockOptions()
        self.error: OSError | None = None
        self.flow = 0
        self.peer_buffer = 0
        self.low_water = 1
        self.turn = _thread.allocate_lock()

    @property
    def state(self) -> State:
        """How far the socket has come."""
        return self.note.state

    @property
    def has_stream(self) -> bool:
        """Whether the descriptor is the connection, and not the way to the switch."""
        return bool(self.note.flags & STREAM)

    @property
    def is_attached(self) -> bool:
        """Whether the descriptor leads to the switch."""
        return bool(self.note.flags & ATTACHED)

    @property
    def receives(self) -> bool:
        """Whether our user still receives."""
        return not self.note.flags & NO_RECEIVING

    @property
    def sends(self) -> bool:
        """Whether our user still sends."""
        return not self.note.flags & NO_SENDING

    @property
    def wants_zerocopy(self) -> bool:
        """SO_ZEROCOPY, which no connection here has."""
        return bool(self.note.flags & ZEROCOPY)

    @property
    def has_low_water(self) -> bool:
        """Whether our user has set SO_RCVLOWAT."""
        return bool(self.note.flags & LOW_WATER)

    @property
    def is_end_told(self) -> bool:
        """Whether it is settled how the connection ended."""
        return bool(self.note.flags & END_TOLD)

"""The seam: everything that the native data plane offers to Python.

Crossed per connection or per batch of events, never per packet. All objects but `Node` are frozen
snapshots. Checked against the built module by `make check` (stubtest).
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, final

__all__ = [
    "DatagramInfo",
    "Event",
    "FlowInfo",
    "GuestInfo",
    "ListenerInfo",
    "Node",
    "Snapshot",
]

@final
class Node:
    """A running node: the switch (CID 2), or a userspace guest once it has joined a device.

    Its packets are moved by a native thread of its own, which never takes the GIL. It serves host
    programs on the Unix sockets `stream` and `seqpacket` in `socket_dir`
    (docs/reference/client-protocol.md), which must exist and be private to the user.

    Raises:
        OSError: a socket cannot be made there; `filename` says which.
    """

    def __new__(cls, *, cid: int, socket_dir: str | PathLike[str]) -> Node: ...
    @property
    def cid(self) -> int:
        """The local CID."""

    def set_polling(self, microseconds: int) -> None:
        """How long at most to look for packets before sleeping; 0: not at all.

        Raises:
            OSError: the node has stopped.
        """

    def set_linger_timeout(self, seconds: float) -> None:
        """How long what a program sent before it closed may wait for the other side to take some of it.

        Time during which the other side is paused does not count.

        Raises:
            ValueError: it is negative or no number.
            OSError: the node has stopped.
        """

    def add_guest(self, options: Mapping[str, object]) -> None:
        """Adds a guest; its vhost-user front end may connect to its socket from now on.

        Args:
            options: every field of `GuestOptions` (crates/virtio/src/options.rs), which are those of
                `vsock.control.model.GuestSpec`, with the paths of its sockets.

        Raises:
            KeyError: a field is missing.
            TypeError: a field is of the wrong type.
            ValueError: a CID is not one a guest can have.
            OSError: EADDRINUSE if name, CID or a path are taken; else what the kernel says.
        """

    def change_guest(self, cid: int, options: Mapping[str, object]) -> None:
        """Makes a guest what `options` say, while it runs; its name, its socket and `memory_slots` stay.

        With another CID all its connections end. Who has come by a hybrid socket that it loses stays.

        Raises:
            KeyError, TypeError, ValueError: as `add_guest`.
            OSError: ENODEV if there is no guest with this CID, EADDRINUSE if the new one is another's;
                else what the kernel says.
        """

    def remove_guest(self, cid: int) -> None:
        """Ends a guest's connections, tells it so, and disconnects its front end. ENODEV if there is none.

        A guest that takes nothing is waited for a second.
        """

    def wait_told(self, cid: int, timeout: float) -> bool:
        """Waits until a guest has taken what there was to tell it, such as its new CID.

        False: it has not within `timeout` seconds. A guest that cannot be told is not waited for.

        Raises:
            ValueError: `timeout` is negative or no number.
            OSError: ENODEV if there is no guest with this CID.
        """

    def join(
        self, socket: str | PathLike[str], *, cid: int | None = None, timeout: float = 10.0
    ) -> int:
        """Becomes a guest of the vhost-user-vsock device at `socket`; returns our CID.

        Raises:
            OSError: ETIMEDOUT after `timeout` seconds, EADDRNOTAVAIL if the device gives another CID
                than `cid`, EPROTO if it is no such device; else what the kernel says.
        """

    def explain(self, source: int, destination: int) -> tuple[bool, str, str]:
        """Whether the guest or host with CID `source` may connect to the one with CID `destination`.

        Asks the rules that every connection is asked by (crates/core/src/admission.rs).

        Returns:
            Whether it may, the name of the rule that decides (empty: a CID is nobody's), and why.

        Raises:
            OSError: the node has stopped.
        """

    def snapshot(self) -> Snapshot:
        """Everything as it is now. RuntimeError once the node has been stopped."""

    def set_wants_flows(self, wanted: bool) -> None:
        """Whether single connections, opened and refused, are events too; at first they are not."""

    def event_fd(self) -> int:
        """A descriptor that is readable while there are events; it belongs to the node."""

    def events(self) -> list[Event]:
        """What has happened since the last call, oldest first."""

    def stop(self) -> None:
        """Ends all connections and the thread, and removes the sockets. Harmless the second time."""

@final
class Event:
    """One thing that happened: `attached`, `detached`, `refused`, `fault`, `lost`, ..."""

    @property
    def kind(self) -> str: ...
    @property
    def cid(self) -> int:
        """Which guest's; 0xffffffff when none."""

    @property
    def detail(self) -> str:
        """Why, who or how many; for people."""

    @property
    def time(self) -> float:
        """Seconds since the epoch."""

@final
class Snapshot:
    """A node and everything in it, at one moment."""

    @property
    def guests(self) -> list[GuestInfo]: ...
    @property
    def listeners(self) -> list[ListenerInfo]: ...
    @property
    def datagrams(self) -> list[DatagramInfo]: ...
    @property
    def flows(self) -> list[FlowInfo]: ...
    @property
    def counters(self) -> dict[str, int]: ...

@final
class GuestInfo:
    """One guest of a switch. Bytes and packets `in` came from the guest."""

    @property
    def cid(self) -> int: ...
    @property
    def options(self) -> dict[str, Any]:
        """What it was told to be, as for `Node.add_guest`."""

    @property
    def state(self) -> str:
        """`waiting` (no front end), `attached` (no driver yet) or `running`."""

    @property
    def front_end_pid(self) -> int: ...
    @property
    def features(self) -> int:
        """Virtio feature bits that the guest's driver took."""

    @property
    def connections(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def packets_in(self) -> int: ...
    @property
    def packets_out(self) -> int: ...
    @property
    def errors(self) -> int:
        """Malformed packets, packets that found no room, attachments ended by a fault."""

    @property
    def counters(self) -> dict[str, int]: ...

@final
class ListenerInfo:
    """One program that takes connections; `type` is stream or seqpacket."""

    @property
    def cid(self) -> int: ...
    @property
    def port(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def backlog(self) -> int: ...
    @property
    def waiting(self) -> int:
        """Connections that it has not taken yet."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...

@final
class DatagramInfo:
    """One datagram socket: what it is bound to, and what became of its datagrams."""

    @property
    def cid(self) -> int: ...
    @property
    def port(self) -> int: ...
    @property
    def sent(self) -> int:
        """By it, and not lost before they left this node."""

    @property
    def received(self) -> int:
        """For it, read by it or not yet."""

    @property
    def dropped(self) -> int:
        """For it, and lost because it did not receive."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...

@final
class FlowInfo:
    """One connection; `bytes_out` went from source to destination."""

    @property
    def id(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def source(self) -> tuple[int, int]: ...
    @property
    def destination(self) -> tuple[int, int]: ...
    @property
    def state(self) -> str: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def age(self) -> float:
        """Seconds since it was asked for."""

    @property
    def pid(self) -> int:
        """The program on this node; 0 between two guests, or when it is not visible."""

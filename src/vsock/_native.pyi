"""The seam: everything that the native data plane offers to Python.

Crossed per connection or per batch of events, never per packet. Snapshots are
dictionaries and events frozen objects. Checked against the built module by `make check` (stubtest).
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any, final

__all__ = [
    "Event",
    "Node",
]

@final
class Node:
    """A running node: the switch (CID 2), or a userspace guest once it has joined a device.

    Its packets are moved by a native thread of its own, which never takes the GIL. It serves host
    programs on the Unix sockets `stream`, `seqpacket` and `dgram` in `socket_dir`
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
            options: all fields of `vsock.control.model.GuestSpec`, `socket` a path and `hybrid` a path or
                None (declared in crates/virtio/src/options.rs).

        Raises:
            KeyError: a field is missing.
            TypeError: a field is of the wrong type.
            ValueError: a CID is not one a guest can have.
            OSError: EADDRINUSE if name, CID or a path are taken; else what the kernel says.
        """

    def change_guest(self, cid: int, options: Mapping[str, object]) -> None:
        """Changes the options of a guest while it runs; name, socket and `memory_slots` keep their values.

        A new CID ends all its connections. Connections over a hybrid socket that is replaced stay open.

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

    def snapshot(self) -> dict[str, Any]:
        """Returns the present state as one dictionary.

        `guests`, `listeners`, `datagrams` and `flows` are lists of dictionaries, `counters` has numbers by
        name. crates/python/src/records.rs declares the fields, and `vsock.switch.listing` makes records of
        `vsock.control.model` from them.

        Raises:
            RuntimeError: the node has been stopped.
        """

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

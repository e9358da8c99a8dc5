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

    With `sandbox`, its threads give up system calls, files and privileges that they do not need, as
    far as the kernel supports it (docs/decisions/0017-sandbox.md). Python's threads keep theirs.

    Raises:
        OSError: a socket cannot be created there; `filename` is its path.
    """

    def __new__(cls, *, cid: int, socket_dir: str | PathLike[str], sandbox: bool) -> Node: ...
    @property
    def cid(self) -> int:
        """The local CID."""

    def set_polling(self, microseconds: int) -> None:
        """Sets the longest time to poll for packets before the node blocks; 0 disables polling.

        Raises:
            RuntimeError: the node has stopped.
        """

    def set_linger_timeout(self, seconds: float) -> None:
        """Sets how long data of a closed socket may wait until the peer takes some of it.

        Time during which the peer is paused does not count.

        Raises:
            ValueError: `seconds` is negative or not a number.
            RuntimeError: the node has stopped.
        """

    def add_guest(self, options: Mapping[str, object]) -> None:
        """Adds a guest; its vhost-user front end may connect to its socket from now on.

        Args:
            options: all fields of `vsock.control.model.GuestSpec`, `socket` a path, `hybrid` a path or
                None, users, groups and modes as numbers (declared in crates/node/src/options.rs).

        Raises:
            KeyError: a field is missing.
            TypeError: a field is of the wrong type.
            ValueError: a CID is not valid for a guest.
            OSError: EADDRINUSE if the name, the CID or a path is in use; else the kernel's error.
        """

    def change_guest(self, cid: int, options: Mapping[str, object]) -> None:
        """Changes the options of a guest while it runs; name, socket and `memory_slots` keep their values.

        A new CID ends all its connections. Connections over a hybrid socket that is replaced stay open.

        Raises:
            KeyError, TypeError, ValueError: as `add_guest`.
            OSError: ENODEV if no guest has this CID, EADDRINUSE if another guest has the new one; else
                the kernel's error.
        """

    def remove_guest(self, cid: int) -> None:
        """Resets a guest's connections, then disconnects its front end.

        Waits until the guest has received the resets, for at most a second.

        Raises:
            OSError: ENODEV if no guest has this CID.
        """

    def wait_told(self, cid: int, timeout: float) -> bool:
        """Waits until a guest has received pending notices, such as that of its new CID.

        Returns True at once if the guest's front end has no way to receive them.

        Returns:
            False if `timeout` seconds have passed first.

        Raises:
            ValueError: `timeout` is negative or not a number.
            OSError: ENODEV if no guest has this CID.
        """

    def join(
        self, socket: str | PathLike[str], *, cid: int | None = None, timeout: float = 10.0
    ) -> int:
        """Becomes a guest of the vhost-user-vsock device at `socket`; returns our CID.

        Raises:
            OSError: ETIMEDOUT after `timeout` seconds, EADDRNOTAVAIL if the device assigns another CID
                than `cid`, EPROTO if it is not such a device; else the kernel's error.
        """

    def explain(self, source: int, destination: int) -> tuple[bool, str, str]:
        """Whether the guest or host with CID `source` may connect to the one with CID `destination`.

        Asks the rules that every connection is asked by (crates/core/src/admission.rs).

        Returns:
            Whether it may, the name of the rule that decides (empty: a CID is nobody's), and why.

        Raises:
            RuntimeError: the node has stopped.
        """

    def driver_starts(self, cid: int) -> int:
        """How often the driver of a guest came up: another number says that it has booted since, or was reset.

        Raises:
            OSError: ENODEV if no guest has this CID.
            RuntimeError: the node has stopped.
        """

    def snapshot(self) -> dict[str, Any]:
        """Returns the present state as one dictionary.

        `guests`, `listeners`, `datagrams` and `flows` are lists of dictionaries, `counters` has numbers by
        name, and `sandbox` is what the threads have given up, in words. crates/python/src/records.rs declares
        the fields, and `vsock.switch.listing` makes records of `vsock.control.model` from them.

        Raises:
            RuntimeError: the node has been stopped.
        """

    def set_wants_flows(self, wanted: bool) -> None:
        """Turns events for each opened and each refused connection on or off; they are off at first."""

    def event_fd(self) -> int:
        """A descriptor that is readable while there are events; it belongs to the node."""

    def events(self) -> list[Event]:
        """Returns the events since the last call, oldest first."""

    def stop(self) -> None:
        """Ends all connections and the thread, and removes the sockets. A second call has no effect."""

@final
class Event:
    """One thing that happened: `attached`, `detached`, `refused`, `fault`, `lost`, ..."""

    @property
    def kind(self) -> str: ...
    @property
    def cid(self) -> int:
        """The guest's CID; 0xffffffff if the event is not about a guest."""

    @property
    def detail(self) -> str:
        """The reason, the process or a number, as text for people."""

    @property
    def time(self) -> float:
        """Seconds since the epoch."""

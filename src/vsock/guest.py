"""`Guest`: this process as a guest of a switch, with a CID of its own and no virtual machine.

A guest is a node of its own, in a thread without the interpreter, that joins a device's vhost-user
socket as a VMM would and serves the client protocol in a private directory. Its sockets are therefore
the same as those of a host program; only the directory differs. This module is not for guests that
are virtual machines.
"""

import select
import shutil
import tempfile
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vsock import sockets
from vsock._native import Node
from vsock.address import CID_ANY, AddressLike
from vsock.errors import UsageError
from vsock.transports.switch import SwitchTransport

if TYPE_CHECKING:
    import asyncio
    from os import PathLike

_LOOK = 1.0
"""Seconds after which a wait looks whether another thread has stopped the guest."""

_ENDS = frozenset({"detached", "ended"})
"""Events after which nothing of this guest works any more: its switch is gone, or its own data plane."""


class Guest:
    """A userspace guest; use it in ``with`` or ``async with``.

    Args:
        socket: path of the vhost-user socket that a switch, or any other vhost-user-vsock device,
            serves for this guest.
        cid: the CID this guest must get; by default whatever the device says.
        timeout: seconds that the device has to answer.

    Raises:
        OSError: on entering, if the device cannot be joined.
    """

    def __init__(
        self, socket: "str | PathLike[str]", *, cid: int | None = None, timeout: float = 10.0
    ) -> None:
        """Make a guest that has not joined yet; the arguments are the class's."""
        self._path = str(socket)
        self._wanted_cid = cid
        self._timeout = timeout
        self._directory: str | None = None
        self._node: Node | None = None
        self._end: str | None = None
        self._watching = threading.Lock()

    @property
    def cid(self) -> int:
        """The guest's CID, which the switch may change.

        Raises:
            UsageError: it has not joined.
        """
        return self.transport.local_cid()

    @property
    def transport(self) -> SwitchTransport:
        """What to pass as ``transport=`` to have any verb of this package act for this guest."""
        self._require_node()
        assert self._directory is not None, "a node has a directory"
        return SwitchTransport(self._directory)

    def start(self) -> None:
        """Join the device; ``with`` does it.

        Raises:
            OSError: the socket is not there, or nothing that is a vhost-user-vsock device answers in time.
            UsageError: it has joined already.
        """
        if self._node is not None:
            raise UsageError("this guest has joined already")
        self._end = None
        self._directory = tempfile.mkdtemp(prefix="vsock-guest-")  # mode 0700
        try:
            known = CID_ANY if self._wanted_cid is None else self._wanted_cid
            self._node = Node(cid=known, socket_dir=self._directory, sandbox=False)
            self.rejoin()
        except BaseException:
            self.stop()
            raise

    def rejoin(self, timeout: float | None = None) -> None:
        """Join the device again after it went away, as a switch that was restarted.

        Connections ended with it; listeners of this guest go on.

        Args:
            timeout: seconds that the device has to answer; by default as for `start`.

        Raises:
            OSError: the socket is not there, or nothing that is a vhost-user-vsock device answers in time.
            UsageError: it has not been started.
        """
        node = self._require_node()
        self._look_for_end(node)  # of the time before, which is over when we have joined
        patience = self._timeout if timeout is None else timeout
        try:
            node.join(self._path, cid=self._wanted_cid, timeout=patience)
        except OSError as error:
            raise OSError(error.errno, f"{self._path}: {error.strerror}") from error
        with self._watching:
            self._end = None

    def stop(self) -> None:
        """Leave: every connection ends, and the directory goes. Does nothing if not started."""
        node, self._node = self._node, None
        if node is not None:
            node.stop()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)

    def wait(self, timeout: float | None = None) -> str | None:
        """Wait until this guest's switch is gone, and return why; None if it is still there after `timeout` seconds.

        It is gone when the switch ends, or removes the guest. Connections have ended then, and whatever
        this guest does comes to nothing; `rejoin` joins again, `stop` and `start` with new sockets. A
        `stop` by another thread ends the wait too.

        Args:
            timeout: in seconds; None: for ever, 0: only look.

        Raises:
            UsageError: it has not joined.
        """
        node = self._require_node()
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._look_for_end(node) is None:
            left = _LOOK if deadline is None else min(_LOOK, deadline - time.monotonic())
            if left <= 0:
                return None
            poller = select.poll()
            poller.register(node.event_fd(), select.POLLIN)
            poller.poll(left * 1000)
        return self._end

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``wait(0)`` may have news, which empties it; for poll.

        Raises:
            UsageError: it has not joined.
        """
        return self._require_node().event_fd()

    async def wait_async(self) -> str:
        """Wait, in asyncio, until this guest's switch is gone, and return why; see `wait`.

        Raises:
            UsageError: it has not joined.
        """
        import asyncio

        node = self._require_node()
        while True:
            end = self._look_for_end(node)
            if end is not None:
                return end
            await asyncio.sleep(_LOOK / 4)

    def _look_for_end(self, node: Node) -> str | None:
        with self._watching:
            if self._node is not node:
                self._end = self._end or "this guest was stopped"
            elif self._end is None:
                ends = [event.detail for event in node.events() if event.kind in _ENDS]
                self._end = ends[-1] if ends else None
            return self._end

    def socket(
        self,
        type: int = sockets.SOCK_STREAM,  # noqa: A002 - the name that socket.socket gives it
        proto: int = 0,
    ) -> sockets.socket:
        """Return a `vsock.socket` of this guest; `type` and `proto` as there."""
        return sockets.socket(type, proto, transport=self.transport)

    def create_connection(
        self, address: AddressLike, timeout: float | None = None, **options: Any
    ) -> sockets.socket:
        """Connect from this guest; see `vsock.create_connection`."""
        return sockets.create_connection(address, timeout, transport=self.transport, **options)

    def create_server(self, address: AddressLike | int, **options: Any) -> sockets.socket:
        """Listen in this guest; see `vsock.create_server`."""
        sock = sockets.create_server(address, transport=self.transport, **options)
        assert isinstance(sock, sockets.socket), "a guest's transport makes our sockets"
        return sock

    async def open_connection(
        self, address: AddressLike, **options: Any
    ) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
        """Connect from this guest; see `vsock.open_connection`."""
        from vsock import aio

        return await aio.open_connection(address, transport=self.transport, **options)

    async def start_server(
        self,
        client_connected_cb: Any,
        address: AddressLike | int,
        **options: Any,
    ) -> "asyncio.AbstractServer":
        """Serve in this guest; see `vsock.start_server`."""
        from vsock import aio

        transport = self.transport
        return await aio.start_server(client_connected_cb, address, transport=transport, **options)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        import asyncio

        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    def _require_node(self) -> Node:
        node = self._node
        if node is None:
            raise UsageError("this guest has not joined a switch: use it in 'with', or start() it")
        return node

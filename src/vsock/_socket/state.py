"""What a process knows of a stream socket, and how the socket connects.

`dup` makes a second Python object for the same socket, and both share one `SocketState`. What other
processes that hold the socket may change too (its state, an error, what is shut) is kept in the
socket (`vsock._socket.metadata`) and only cached here; every change of it goes through
`SocketState.store`.

A connect is *held*: the request is sent with padding that fills a send buffer made small for the
moment, and the node takes it out when it knows the outcome. So the descriptor becomes writable with
the outcome, which everybody who holds the socket can see and nobody can take away from others:
docs/reference/client-protocol.md, "the held request". Which call is allowed when is
`vsock._socket.stream`'s concern.
"""

import _thread
import contextlib
import errno
import select
import time
from collections.abc import Iterator
from socket import SHUT_RDWR, SO_RCVLOWAT, SOL_SOCKET
from typing import Final

from vsock import _client
from vsock._client import HELD, NAMED, PROMPT, Node, Op, Reply, Request, encoded_name
from vsock._socket import metadata, send_buffer
from vsock._socket.metadata import (
    ATTACHED,
    BEGUN,
    END_TOLD,
    LOW_WATER,
    NO_RECEIVING,
    NO_SENDING,
    OPTIONS,
    STREAM,
    ZEROCOPY,
    Metadata,
    State,
)
from vsock._socket.options import DEFAULT_BUFFER, VsockOptions
from vsock._system.green import Base, plain_poll
from vsock._system.waiting import Steps, Wait
from vsock.address import CID_ANY, PORT_ANY, Address, NamedAddress
from vsock.errors import transport_error

UNKNOWN: Final = Address(CID_ANY, PORT_ANY)
LARGEST_BUFFER: Final = 0xFFFFFFFF
_BEGINNING_PAUSE: Final = 0.1
"""Seconds until the next look whether another process has begun a connect, which wakes nobody."""


class SocketState:
    """One VSOCK socket, whatever number of descriptors it has; methods take one of these as `sock`.

    Attributes:
        metadata: the socket's metadata when it was last read or written.
        node: where the socket lives; None for one that needs no node.
        ours: our address, as far as it is known.
        theirs: the other side's.
        options: those of level AF_VSOCK.
        low_water: SO_RCVLOWAT.
        peer_buffer: the other side's receive buffer when it was last asked for, in bytes.
    """

    __slots__ = (
        *("metadata", "node", "ours", "theirs", "options", "low_water", "peer_buffer"),
        *("_error", "_lock"),
    )

    def __init__(self, kept: Metadata, node: Node | None = None) -> None:
        self.metadata = kept
        self.node = node
        self.ours = self.theirs = UNKNOWN
        self.options = VsockOptions()
        self.low_water = 1
        self.peer_buffer = 0
        # The exception for the errno in the metadata, if it was this process that met it.
        self._error: OSError | None = None
        # Held by the thread that begins a connect, or looks how one ended.
        self._lock = _thread.allocate_lock()

    @classmethod
    def of_socket(cls, sock: Base, node: Node | None) -> "SocketState | None":
        """Return the state of a Unix socket that was passed on; None if it has no metadata."""
        kept = metadata.read(sock)
        if kept is None:
            return None
        state = cls(kept, node)
        state.ours = metadata.name(sock) or UNKNOWN
        state.theirs = Address(kept.number, metadata.read_port(sock))
        state.options = metadata.read_options(sock, kept)
        state.peer_buffer = 1 << kept.code if kept.has_stream and kept.code else 0
        if state.has_low_water:
            state.low_water = Base.getsockopt(sock, SOL_SOCKET, SO_RCVLOWAT)
        return state

    @property
    def state(self) -> State:
        """How far the socket has come."""
        return self.metadata.state

    @property
    def has_stream(self) -> bool:
        """Whether the descriptor is the connection, and not the way to the node."""
        return bool(self.metadata.flags & STREAM)

    @property
    def is_attached(self) -> bool:
        """Whether the descriptor leads to the node."""
        return bool(self.metadata.flags & ATTACHED)

    @property
    def receives(self) -> bool:
        """Whether our user still receives."""
        return not self.metadata.flags & NO_RECEIVING

    @property
    def sends(self) -> bool:
        """Whether our user still sends."""
        return not self.metadata.flags & NO_SENDING

    @property
    def wants_zerocopy(self) -> bool:
        """SO_ZEROCOPY, which no connection here has."""
        return bool(self.metadata.flags & ZEROCOPY)

    @property
    def has_low_water(self) -> bool:
        """Whether our user has set SO_RCVLOWAT."""
        return bool(self.metadata.flags & LOW_WATER)

    @property
    def is_end_told(self) -> bool:
        """Whether the node has been asked how the connection ended."""
        return bool(self.metadata.flags & END_TOLD)

    # What is kept in the socket

    def load(self, sock: Base) -> Metadata:
        """Read what the socket is now; another process may have changed it."""
        kept = metadata.read(sock)
        if kept is not None:
            self.metadata = kept
        return self.metadata

    def store(self, sock: Base, kept: Metadata) -> None:
        """Write what the socket is from now on."""
        metadata.write(sock, kept)
        self.metadata = kept

    def store_options(self, sock: Base) -> None:
        """Write the options of level AF_VSOCK."""
        if self.has_stream:
            # A connection can have no more.
            self.options.size = min(self.options.size, LARGEST_BUFFER)
        is_kept = metadata.write_options(sock, self.options)
        kept = self.load(sock)
        self.store(sock, kept.plus(OPTIONS) if is_kept else kept.minus(OPTIONS))

    def take_name(self, sock: Base, reply: Reply) -> None:
        """Take the address that the socket is bound to from a reply."""
        if reply.our_port != PORT_ANY:
            metadata.give_name(sock, Address(reply.our_cid, reply.our_port))
        self.ours = metadata.name(sock) or UNKNOWN

    # What only the node knows

    def find_name(self, sock: Base) -> None:
        """Find out our address, if there is one; the node has chosen the port of a connect."""
        self.ours = metadata.name(sock) or self.ours
        if self.ours.port != PORT_ANY or not self.has_stream or self.node is None:
            return
        # As in the kernel, the CID of a client that did not bind to one stays the wildcard.
        self.ours = Address(CID_ANY, self.node.our_port(_client.cookie(sock)))
        if self.ours.port != PORT_ANY:
            metadata.give_name(sock, self.ours)

    def check_end(self, sock: Base) -> None:
        """Raise ECONNRESET, once, if the data ends because the connection did not end well."""
        if self.is_end_told or self.node is None or not self.receives:
            return
        # While the other end is open, the other side has only ended its data.
        poller = plain_poll()
        poller.register(sock, 0)
        if not poller.poll(0) or self.load(sock).flags & END_TOLD:
            return
        is_good = self.node.has_ended_well(sock)
        self.store(sock, self.metadata.plus(END_TOLD))
        if not is_good:
            raise ConnectionResetError(
                errno.ECONNRESET,
                f"the connection to {self.theirs} did not end well: data may be missing",
            )

    # Connecting

    def begin_connect(self, sock: Base, to: Address | NamedAddress, *, is_prompt: bool) -> None:
        """Send the request to connect to `to`; the socket is CONNECTING then.

        Args:
            sock: the socket, which is attached.
            to: where to. The node looks a name up, and says the CID in its prompt answer.
            is_prompt: wait until the node says that the attempt has begun, or why not, which it does at once.

        Raises:
            OSError: it has not begun.
        """
        if isinstance(to, NamedAddress):
            cid, name, theirs = 0, encoded_name(to), Address(CID_ANY, to.port)
            flags = HELD | PROMPT | NAMED
        else:
            cid, name, theirs = to.cid, None, to
            flags = HELD | (PROMPT if is_prompt else 0)
        milliseconds = max(1, min(round(self.options.connect_timeout * 1000), 0xFFFFFFFF))
        buffer = self._buffer_to_announce()
        request = Request(Op.CONNECT, cid, to.port, milliseconds, buffer, flags=flags)
        with self._locked():
            before = self.load(sock)
            kept = self._with_peer(sock, before._replace(state=State.CONNECTING), theirs)
            send_buffer.begin_hold(sock, self.has_low_water)
            self.store(sock, kept)
            try:
                _client.send(sock, request, _client.held(_client.cookie(sock), name))
            except OSError:
                send_buffer.end_hold(sock, self.has_low_water)
                self.store(sock, before)
                raise
            if flags & PROMPT:
                kept = self._await_beginning(sock, kept, to)
            self.store(sock, kept.plus(BEGUN))

    def _with_peer(self, sock: Base, kept: Metadata, theirs: Address) -> Metadata:
        """Take `theirs` for the other side's address; return the metadata with it."""
        metadata.write_port(sock, theirs.port)
        self.theirs = theirs
        return kept._replace(number=theirs.cid)

    def _buffer_to_announce(self) -> int:
        """Return the buffer size for a request; 0 is the node's own default."""
        size = self.options.size
        return 0 if size == DEFAULT_BUFFER else max(1, min(size, LARGEST_BUFFER))

    def _await_beginning(self, sock: Base, kept: Metadata, to: Address | NamedAddress) -> Metadata:
        """Wait until the node says that an attempt is under way, or why not; return the metadata of the attempt."""
        reply = None
        try:
            deadline = time.monotonic() + _client.ANSWER_TIMEOUT
            reply = _client.receive(sock, Op.CONNECT, deadline)
            if reply is None:
                self._give_up(sock, kept)
                raise _client.silent(Op.CONNECT)
            if reply.errno == errno.ENODEV and isinstance(to, NamedAddress):
                raise _client.unknown_guest(to)
            if reply.errno != errno.EINPROGRESS:
                raise transport_error(reply.errno, f"connect to {to}")
        except OSError:
            if self.state is not State.SHUT_DOWN:
                self.store(sock, self._end_attempt(sock, kept, reply))
            raise
        self.take_name(sock, reply)
        if isinstance(to, NamedAddress):
            kept = self._with_peer(sock, kept, Address(reply.their_cid, to.port))
        return kept

    def _give_up(self, sock: Base, kept: Metadata) -> None:
        """Shut the descriptor down for good: the node owes an answer, which may come at any later time."""
        Base.shutdown(sock, SHUT_RDWR)
        send_buffer.end_hold(sock, self.has_low_water)
        self.store(sock, kept._replace(state=State.SHUT_DOWN))

    def finish_connect(self, sock: Base, deadline: float) -> Steps[bool]:
        """Wait for the outcome of a connect under way; False if it has not come by `deadline`."""
        # What `load` returns counts. Another thread that has read the socket before a change may write `metadata` after it.
        while self.load(sock).state is State.CONNECTING and not self._take_outcome(sock):
            now = time.monotonic()
            if now >= deadline:
                return False
            if self.load(sock).flags & BEGUN:
                yield Wait(sock, select.POLLOUT, deadline)
            else:
                # Another process has yet to send the request, and until then the socket is writable.
                yield Wait(None, 0, min(now + _BEGINNING_PAUSE, deadline))
        return True

    def abandon(self, sock: Base) -> None:
        """Give the socket up if its connect has not begun by the deadline: the process that was about to begin it has ended.

        Whether it sent the request is not known, so an answer may still come.
        """
        with self._locked():
            kept = self.load(sock)
            if kept.state is State.CONNECTING and not kept.flags & BEGUN:
                self._give_up(sock, kept)

    def update(self, sock: Base) -> None:
        """Read what the socket is now; if a connect is under way and has ended, take its outcome."""
        if sock.fileno() >= 0 and self.load(sock).state is State.CONNECTING:
            self._take_outcome(sock)

    def _take_outcome(self, sock: Base) -> bool:
        """Store how the connect under way ended; False if it has not."""
        with self._locked():
            kept = self.load(sock)
            if kept.state is not State.CONNECTING:
                return True
            if not kept.flags & BEGUN:
                return False
            reply = None
            try:
                reply = _client.outcome(sock, _client.cookie(sock))
                if reply is None:
                    # What is unread may be data of another process, which has stored then that there is a connection.
                    return self.load(sock).state is not State.CONNECTING
                if reply.errno:
                    raise transport_error(reply.errno, f"connect to {self.theirs}")
            except OSError as error:
                self._error = error
                code = error.errno or errno.EPROTO
                self.store(sock, self._end_attempt(sock, kept, reply)._replace(code=code))
                if reply is not None:
                    _client.take_refusal(sock)
            else:
                # A process that takes a refusal stores the end of the attempt first.
                kept = self.load(sock)
                if kept.state is State.CONNECTING:
                    send_buffer.end_hold(sock, self.has_low_water)
                    kept = kept._replace(state=State.CONNECTED, code=0)
                    self.store(sock, kept.plus(STREAM).minus(BEGUN))
                    self.store_options(sock)
            return True

    def _end_attempt(self, sock: Base, kept: Metadata, reply: Reply | None) -> Metadata:
        """Return the metadata of a socket whose connect came to nothing: the port that it had stays the socket's."""
        send_buffer.end_hold(sock, self.has_low_water)
        if reply is not None:
            self.take_name(sock, reply)
        state = State.FRESH if metadata.name(sock) is None else State.BOUND
        return kept._replace(state=state).minus(BEGUN)

    def raise_error(self, sock: Base) -> None:
        """Raise why the last connect came to nothing, if nobody has asked yet."""
        code = self.load(sock).error
        if code:
            error = self._error
            self.clear_error(sock)
            if error is None or error.errno != code:
                error = transport_error(code, f"connect to {self.theirs}")
            raise error

    def clear_error(self, sock: Base) -> int:
        """Return the errno of the last connect, if nobody has asked yet, and forget it; 0 if there is none."""
        kept = self.load(sock)
        if kept.error:
            self._error = None
            self.store(sock, kept._replace(code=0))
        return kept.error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads from looking how a connect ends while this one begins it, or looks."""
        # A fork may have copied a lock that nobody will release: so nobody waits for ever.
        is_held = self._lock.acquire(timeout=_client.ANSWER_TIMEOUT)
        try:
            yield
        finally:
            if is_held:
                self._lock.release()

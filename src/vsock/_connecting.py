"""How a socket connects: the attempt, what holds the descriptor until its outcome, and the outcome.

Part of `vsock.socket`, with the calls of the protocol in `vsock._endpoint`. The outcome is seen by
whoever looks and taken from nobody: docs/reference/endpoint-protocol.md, "the held request". Not for the
order in which a program may call what, which is `vsock._socket_class`.
"""

import contextlib
import errno
import select
import socket as _socket
import time
from collections.abc import Iterator
from typing import Final

from vsock import _endpoint, _note
from vsock._endpoint import Op, Reply, Request
from vsock._green import Base as _Base
from vsock._life import UNKNOWN
from vsock._note import ATTACHED, BEGUN, STREAM, Note, State
from vsock._option_calls import OptionCalls
from vsock.address import PORT_ANY, Address
from vsock.errors import state_error, transport_error

_LEAST_SEND_BUFFER: Final = 4608
"""The smallest send buffer of a socket as the kernel counts it."""
_USUAL_SEND_BUFFER: Final = 212992
_MESSAGES_SEND_BUFFER: Final = 2 << 24
"""Of a socket that keeps messages: the kernel gives what its settings allow."""


class Connecting(OptionCalls):
    """The part of a socket that connects it."""

    __slots__ = ()

    @property
    def connect_timeout(self) -> float:
        """Seconds that `connect` gives the other side to answer."""
        raise NotImplementedError

    def _require_open_file(self) -> None:
        if self.fileno() < 0:
            raise state_error(errno.EBADF)

    def _attach(self) -> None:
        self._require_open_file()
        life = self._life
        if not life.is_attached and life.transport is not None:
            life.transport.attach(self, self.type)
            self._put(life.note.plus(ATTACHED))

    def _begin_hold(self) -> None:
        """Make the send buffer as small as it gets: then 2048 bytes in it are enough for "not writable".

        What it was is put where a connection keeps SO_RCVLOWAT, unless our user has set that.
        """
        if not self._life.has_low_water:
            size = _Base.getsockopt(self, _socket.SOL_SOCKET, _socket.SO_SNDBUF)
            _Base.setsockopt(self, _socket.SOL_SOCKET, _socket.SO_RCVLOWAT, size)
        _Base.setsockopt(self, _socket.SOL_SOCKET, _socket.SO_SNDBUF, 1)

    def _held_send_buffer(self) -> int:
        """Return the send buffer that the socket has again after its connect, as the kernel counts it."""
        if self._life.has_low_water:
            is_stream = self.type == _socket.SOCK_STREAM
            return _USUAL_SEND_BUFFER if is_stream else _MESSAGES_SEND_BUFFER
        return _Base.getsockopt(self, _socket.SOL_SOCKET, _socket.SO_RCVLOWAT)

    def _hold_send_buffer(self, size: int) -> None:
        """Change the send buffer that the socket will have after its connect, as SO_SNDBUF would now."""
        if not self._life.has_low_water:
            size = min(max(2 * size, _LEAST_SEND_BUFFER), 0x7FFFFFFF)
            _Base.setsockopt(self, _socket.SOL_SOCKET, _socket.SO_RCVLOWAT, size)

    def _end_hold(self) -> None:
        """Give the socket its send buffer back, if nobody has yet."""
        size = self._held_send_buffer()
        if size >= _LEAST_SEND_BUFFER:
            # The kernel doubles what it is told.
            _Base.setsockopt(self, _socket.SOL_SOCKET, _socket.SO_SNDBUF, size // 2)
            if not self._life.has_low_water:
                _Base.setsockopt(self, _socket.SOL_SOCKET, _socket.SO_RCVLOWAT, 1)

    def _take_port(self, reply: Reply) -> None:
        """Take what a reply says that we are bound to."""
        if reply.our_port != PORT_ANY:
            _note.give_name(self, Address(reply.our_cid, reply.our_port))
        self._life.ours = _note.name(self) or UNKNOWN

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Keep other threads from looking how a connect ends while this one begins it, or looks."""
        # A fork may have copied a turn that nobody ends: so nobody waits for ever.
        is_taken = self._life.turn.acquire(timeout=_endpoint.ANSWER_TIMEOUT)
        try:
            yield
        finally:
            if is_taken:
                self._life.turn.release()

    def _request_connect(self, theirs: Address) -> None:
        self._attach()
        life = self._life
        milliseconds = max(1, min(round(self.connect_timeout * 1000), 0xFFFFFFFF))
        buffer = self._buffer_to_announce()
        is_prompt = self.gettimeout() == 0
        flags = _endpoint.HELD | (_endpoint.PROMPT if is_prompt else 0)
        request = Request(Op.CONNECT, theirs.cid, theirs.port, milliseconds, buffer, flags=flags)
        with self._turn():
            before = self._look()
            note = before._replace(state=State.CONNECTING, number=theirs.cid)
            _note.write_port(self, theirs.port)
            life.theirs = theirs
            self._begin_hold()
            self._put(note)
            try:
                _endpoint.send(self, request, _endpoint.held(_note.cookie(self)))
            except OSError:
                self._end_hold()
                self._put(before)
                raise
            if is_prompt:
                self._await_beginning(note)
            else:
                self._put(note.plus(BEGUN))

    def _await_beginning(self, note: Note) -> None:
        """Wait until the switch says that an attempt is under way, or why not: it does so at once."""
        reply = None
        try:
            deadline = time.monotonic() + _endpoint.ANSWER_TIMEOUT
            reply = _endpoint.receive(self, Op.CONNECT, deadline)
            if reply is None:
                self._spend(note)
                raise _endpoint.silent(Op.CONNECT)
            if reply.errno != errno.EINPROGRESS:
                raise transport_error(reply.errno, f"connect to {self._life.theirs}")
        except OSError:
            if self._life.state is not State.SHUT_DOWN:
                self._put(self._end_attempt(note, reply))
            raise
        self._take_port(reply)
        self._put(note.plus(BEGUN))

    def _spend(self, note: Note) -> None:
        """Give the descriptor up: the switch owes an answer, which may come at any later time."""
        _Base.shutdown(self, _socket.SHUT_RDWR)
        self._end_hold()
        self._put(note._replace(state=State.SHUT_DOWN))

    def _await_verdict(self) -> None:
        """Wait for the outcome of a connect as a blocking socket does, and raise if it is bad."""
        allowed = self.connect_timeout + _endpoint.ANSWER_TIMEOUT
        timeout = self.gettimeout()
        self._settle(allowed if timeout is None else min(allowed, timeout))
        if self._life.has_stream:
            return
        self._raise_pending_error()
        if timeout is not None and timeout < allowed:
            raise TimeoutError("timed out")
        raise transport_error(errno.ETIMEDOUT, f"connect to {self._life.theirs}")

    def _settle(self, seconds: float = 0) -> None:
        """Look at the socket; if a connect is under way, see how it ends, if it does within `seconds`."""
        if self.fileno() < 0 or self._look().state is not State.CONNECTING:
            return
        deadline = time.monotonic() + seconds
        while not self._see_outcome() and _endpoint.wait(self, select.POLLOUT, deadline):
            pass

    def _see_outcome(self) -> bool:
        """Note how the connect under way ended; false if it has not."""
        with self._turn():
            note = self._look()
            if note.state is not State.CONNECTING:
                return True
            if not note.flags & BEGUN:
                return False
            reply = None
            try:
                reply = _endpoint.outcome(self, _note.cookie(self))
                if reply is None:
                    # What is unread may be data of another process: then it has noted that there is a connection.
                    return self._look().state is not State.CONNECTING
                if reply.errno:
                    raise transport_error(reply.errno, f"connect to {self._life.theirs}")
            except OSError as error:
                self._life.error = error
                code = error.errno or errno.EPROTO
                self._put(self._end_attempt(note, reply)._replace(code=code))
                if reply is not None:
                    _endpoint.take_refusal(self)
            else:
                # Another process may have taken a refusal, which has noted it before.
                note = self._look()
                if note.state is State.CONNECTING:
                    self._end_hold()
                    note = note._replace(state=State.CONNECTED, code=0)
                    self._put(note.plus(STREAM).minus(BEGUN))
                    self._keep_options(announce=False)
            return True

    def _end_attempt(self, note: Note, reply: Reply | None) -> Note:
        """Return the note of a socket whose connect came to nothing: the port that it had stays the socket's."""
        self._end_hold()
        if reply is not None:
            self._take_port(reply)
        state = State.FRESH if _note.name(self) is None else State.BOUND
        return note._replace(state=state).minus(BEGUN)

    def _raise_pending_error(self) -> None:
        life = self._life
        code = life.note.error
        if not code:
            return
        error, life.error = life.error, None
        self._put(life.note._replace(code=0))
        if error is None or error.errno != code:
            error = transport_error(code, f"connect to {life.theirs}")
        raise error

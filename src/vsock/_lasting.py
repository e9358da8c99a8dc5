"""A listener that outlives its switch: what `create_server(reconnect=True)` returns.

The loops of other people watch one descriptor for as long as a server runs, and processes share it. So the program gets one end of a
pair of Unix sockets, which never changes; a thread here holds the other end beside the connection to the switch, and passes on
what each says: connections one way, acknowledgements and options the other way. When the switch ends, the thread binds and listens
again as soon as there is a new one. It costs a turn of this thread per connection.
"""

import errno
import logging
import os
import select
import socket as _socket
import threading
import time
import weakref
from typing import Any, Final

from vsock import _accepting, _endpoint, _note
from vsock._endpoint import MESSAGE_SIZE, Op, Request
from vsock._green import Base as _Base
from vsock._green import is_patched
from vsock._socket_class import socket
from vsock.errors import UsageError, VsockError

_SHORTEST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_SHORTAGE_PAUSE: Final = 0.1
"""Seconds until a connection that found no descriptor is tried again."""
_CLOSING: Final = 0.5
"""Seconds that a close waits for the port to be free; other processes may keep the listener open."""

_log = logging.getLogger("vsock")
_relays: "weakref.WeakSet[_Relay]" = weakref.WeakSet()


class LastingListener(socket):
    """A listener that comes back with its switch; `bind` and `listen` are those of `vsock.socket`."""

    __slots__ = ("_relay",)
    _relay: "_Relay | None"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        if is_patched():
            raise UsageError(
                "reconnect=True needs a thread: it does not work with gevent or eventlet"
            )
        super().__init__(*arguments, **named)
        self._relay = None

    def listen(self, backlog: int = 128, /) -> None:
        """Accept connections, of this switch and of the next ones."""
        super().listen(backlog)
        if self._relay is None:
            self._relay = _Relay(self)

    def close(self) -> None:
        """Close the socket; its port is free then, unless another process has the listener too."""
        super().close()
        if self._relay is not None and self.fileno() < 0:
            self._relay.join(_CLOSING)


class _Relay(threading.Thread):
    """Stands between a listener of the program and the switch.

    Attributes:
        owed: how many connections the program has, or will find, and has not acknowledged yet.
        stale: how many of these came from switches that are gone.
    """

    def __init__(self, listener: LastingListener) -> None:
        super().__init__(name="vsock-reconnect", daemon=True)
        life = listener._life
        assert life.transport is not None, "a listener of a switch"
        self._transport, self._kind = life.transport, listener.type
        self._bind = Request(Op.BIND, *life.ours)
        self._listen = listener._listen_request(), life.options.encode()
        self._switch: _Base | None = _Base(
            _socket.AF_UNIX, self._kind, fileno=_socket.dup(listener.fileno())
        )
        outer, self._inner = _socket.socketpair(_socket.AF_UNIX, self._kind)
        with outer:
            # The new descriptor is the socket now, so it says what that is.
            _note.write(outer, _note.read(listener) or life.note)
            _note.give_name(outer, life.ours)
            _note.write_options(outer, life.options)
            os.set_blocking(outer.fileno(), listener.gettimeout() is None)
            os.dup2(outer.fileno(), listener.fileno(), inheritable=False)
        self._switch.setblocking(False)
        self._inner.setblocking(False)
        self._read = b""
        self._pending: _accepting.Message | None = None
        self._owed = self._stale = 0
        self._pause = _SHORTEST_PAUSE
        _relays.add(self)
        self.start()

    def run(self) -> None:
        """Pass on, until nobody has the program's end any more."""
        try:
            while self._hear_program():
                if self._switch is None:
                    self._come_back()
                elif self._pending is not None or self._is_readable(self._switch):
                    self._pass_connection()
        finally:
            self.close()

    def close(self) -> None:
        """Close our ends: of a forked child, in which there is no thread, or after the end."""
        if self._pending is not None:
            self._pending.close()
        if self._switch is not None:
            self._switch.close()
        self._inner.close()

    def _hear_program(self) -> bool:
        """Wait until there is something to do, and take what the program says; False at its end."""
        poller = select.poll()
        poller.register(self._inner, select.POLLIN)
        timeout: float | None = None
        if self._switch is None:
            timeout = self._pause
        elif self._pending is not None:
            timeout = _SHORTAGE_PAUSE
        else:
            poller.register(self._switch, select.POLLIN)
        ready = poller.poll(None if timeout is None else timeout * 1000)
        if self._inner.fileno() not in dict(ready):
            return True
        try:
            piece = self._inner.recv(4096)
        except (BlockingIOError, ConnectionResetError):
            return True
        self._read += piece
        self._understand()
        return bool(piece)

    def _understand(self) -> None:
        while len(self._read) >= MESSAGE_SIZE:
            request = Request.decode(self._read[:MESSAGE_SIZE])
            whole = MESSAGE_SIZE + request.extra
            if len(self._read) < whole:
                return
            extra, self._read = self._read[MESSAGE_SIZE:whole], self._read[whole:]
            if request.op == Op.LISTEN:
                self._listen = request, extra
                self._tell_switch(request, extra)
            elif self._stale:
                self._stale -= 1
                self._owed -= 1
            else:
                self._owed -= 1
                self._tell_switch(request, extra)

    def _tell_switch(self, request: Request, extra: bytes) -> None:
        try:
            if self._switch is not None:
                _endpoint.send(self._switch, request, extra)
        except OSError:
            self._lose_switch()

    @staticmethod
    def _is_readable(sock: _Base) -> bool:
        return _endpoint.wait(sock, select.POLLIN, 0.0)

    def _pass_connection(self) -> None:
        """Take a connection off the switch and give it to the program, or keep it for a while."""
        assert self._switch is not None, "asked only with a switch"
        try:
            message = self._pending or _accepting.take_in_turn(self._switch)
        except OSError as error:  # no descriptor is left: it stays where it is
            _log.debug("port %d: %s", self._bind.port, error.strerror)
            time.sleep(_SHORTAGE_PAUSE)
            return
        if message is None:
            return
        if not message.data:
            self._lose_switch()
            return
        try:
            _socket.send_fds(self._inner, [message.data], message.fds)
        except (BlockingIOError, InterruptedError):
            self._pending = message
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._pending = message
                return
            # The program's end is closed, as we shall hear.
        else:
            self._owed += 1
        self._pending = None
        message.close()

    def _lose_switch(self) -> None:
        if self._switch is not None:
            self._switch.close()
        self._switch, self._stale, self._pause = None, self._owed, _SHORTEST_PAUSE
        _log.warning("port %d waits for a switch in %s", self._bind.port, self._transport.directory)

    def _come_back(self) -> None:
        """Bind and listen at a new switch, if there is one."""
        sock = _Base(_socket.AF_UNIX, self._kind)
        try:
            self._transport.attach(sock, self._kind)
            for request, extra in ((self._bind, b""), self._listen):
                reply = _endpoint.ask(sock, request, extra)
                if reply.errno:
                    raise OSError(reply.errno, os.strerror(reply.errno))
        except (OSError, VsockError) as error:
            sock.close()
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            _log.debug("port %d: %s", self._bind.port, error)
            return
        sock.setblocking(False)
        self._switch = sock
        _log.info("port %d listens at a new switch", self._bind.port)


def _leave_to_the_parent() -> None:
    """Close the ends that a forked child has got: its copy of the thread does not run."""
    for relay in list(_relays):
        relay.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)

"""`ReconnectingListener`: a listener that outlives its switch; `create_server(reconnect=True)` returns one.

The event loops of other libraries watch one descriptor for as long as a server runs, and processes
share it. So the program gets one end of a pair of Unix sockets, which never changes. A thread here
holds the other end and the connection to the switch, and relays between them: connections one way,
acknowledgements and options the other way. When the switch ends, the thread binds and listens again
as soon as there is a new one. The price is a wake-up of this thread per connection.
"""

import errno
import logging
import os
import select
import threading
import time
import weakref
from socket import AF_UNIX, send_fds, socketpair
from socket import dup as dup_descriptor
from typing import Any, Final

from vsock import _client
from vsock._client import MESSAGE_SIZE, Op, Request
from vsock._socket import accept_queue, metadata, socket_options
from vsock._socket.stream import StreamSocket
from vsock._system.green import Base, is_patched
from vsock._system.waiting import wait
from vsock.errors import UsageError, VsockError

_SHORTEST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_SHORTAGE_PAUSE: Final = 0.1
"""Seconds until a connection that found no descriptor is tried again."""
_CLOSING: Final = 0.5
"""Seconds that a close waits for the port to be free; other processes may keep the listener open."""

_log = logging.getLogger("vsock")
_forwarders: "weakref.WeakSet[_Forwarder]" = weakref.WeakSet()


class ReconnectingListener(StreamSocket):
    """A listener that comes back with its switch; `bind` and `listen` are those of `vsock.socket`."""

    __slots__ = ("_forwarder",)
    _forwarder: "_Forwarder | None"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        if is_patched():
            raise UsageError(
                "reconnect=True needs a thread: it does not work with gevent or eventlet"
            )
        super().__init__(*arguments, **named)
        self._forwarder = None

    def listen(self, backlog: int = 128, /) -> None:
        """Accept connections, of this switch and of the next ones."""
        super().listen(backlog)
        if self._forwarder is None:
            self._forwarder = _Forwarder(self)

    def close(self) -> None:
        """Close the socket; its port is free then, unless another process has the listener too."""
        super().close()
        if self._forwarder is not None and self.fileno() < 0:
            self._forwarder.join(_CLOSING)


class _Forwarder(threading.Thread):
    """Stands between a listener of the program and the switch.

    Attributes:
        owed: how many connections the program has, or will find, and has not acknowledged yet.
        stale: how many of these came from switches that are gone.
    """

    def __init__(self, listener: ReconnectingListener) -> None:
        super().__init__(name="vsock-reconnect", daemon=True)
        state = listener._state
        assert state.node is not None, "a listener of a switch"
        self._node, self._kind = state.node, listener.type
        self._bind = Request(Op.BIND, *state.ours)
        self._listen = socket_options.listen_request(state), state.options.encode()
        self._switch: Base | None = Base(
            AF_UNIX, self._kind, fileno=dup_descriptor(listener.fileno())
        )
        outer, self._inner = socketpair(AF_UNIX, self._kind)
        with outer:
            # The new descriptor is the socket now, so it gets the socket's metadata.
            metadata.write(outer, metadata.read(listener) or state.metadata)
            metadata.give_name(outer, state.ours)
            metadata.write_options(outer, state.options)
            os.set_blocking(outer.fileno(), listener.gettimeout() is None)
            os.dup2(outer.fileno(), listener.fileno(), inheritable=False)
        self._switch.setblocking(False)
        self._inner.setblocking(False)
        self._read = b""
        self._pending: accept_queue.Message | None = None
        self._owed = self._stale = 0
        self._pause = _SHORTEST_PAUSE
        _forwarders.add(self)
        self.start()

    def run(self) -> None:
        """Relay, until nobody has the program's end any more."""
        try:
            while self._serve_program():
                if self._switch is None:
                    self._reconnect()
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

    def _serve_program(self) -> bool:
        """Wait until there is something to do, and forward the program's requests; False when nobody has its end any more."""
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
        self._forward_requests()
        return bool(piece)

    def _forward_requests(self) -> None:
        while len(self._read) >= MESSAGE_SIZE:
            request = Request.decode(self._read[:MESSAGE_SIZE])
            whole = MESSAGE_SIZE + request.extra
            if len(self._read) < whole:
                return
            extra, self._read = self._read[MESSAGE_SIZE:whole], self._read[whole:]
            if request.op == Op.LISTEN:
                self._listen = request, extra
                self._forward_request(request, extra)
            elif self._stale:
                self._stale -= 1
                self._owed -= 1
            else:
                self._owed -= 1
                self._forward_request(request, extra)

    def _forward_request(self, request: Request, extra: bytes) -> None:
        try:
            if self._switch is not None:
                _client.send(self._switch, request, extra)
        except OSError:
            self._drop_switch()

    @staticmethod
    def _is_readable(sock: Base) -> bool:
        return wait(sock, select.POLLIN, 0.0)

    def _pass_connection(self) -> None:
        """Take a connection off the switch and give it to the program, or keep it for a while."""
        assert self._switch is not None, "asked only with a switch"
        try:
            message = self._pending or accept_queue.take_message(self._switch)
        except OSError as error:  # no descriptor is left: it stays where it is
            _log.debug("port %d: %s", self._bind.port, error.strerror)
            time.sleep(_SHORTAGE_PAUSE)
            return
        if message is None:
            return
        if not message.data:
            self._drop_switch()
            return
        try:
            send_fds(self._inner, [message.data], message.fds)
        except (BlockingIOError, InterruptedError):
            self._pending = message
            return
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                self._pending = message
                return
            # The program's end is closed, as the next read will show.
        else:
            self._owed += 1
        self._pending = None
        message.close()

    def _drop_switch(self) -> None:
        if self._switch is not None:
            self._switch.close()
        self._switch, self._stale, self._pause = None, self._owed, _SHORTEST_PAUSE
        _log.warning("port %d waits for a switch in %s", self._bind.port, self._node.directory)

    def _reconnect(self) -> None:
        """Bind and listen at a new switch, if there is one."""
        sock = Base(AF_UNIX, self._kind)
        try:
            self._node.attach(sock, self._kind)
            for request, extra in ((self._bind, b""), self._listen):
                reply = _client.ask(sock, request, extra)
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
    for forwarder in list(_forwarders):
        forwarder.close()


os.register_at_fork(after_in_child=_leave_to_the_parent)

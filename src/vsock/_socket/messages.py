"""Messages (SOCK_SEQPACKET): how long one may be, and the end of a record.

AF_UNIX drops MSG_EOR. So a message that ends a record travels with a file descriptor beside it, and
every other message without. The receiver makes no room for descriptors: the kernel drops it and
sets MSG_CTRUNC, and that is the mark. See docs/reference/client-protocol.md, "The end of a record".
"""

import array
import errno
import os
from collections.abc import Sequence
from socket import MSG_CTRUNC, MSG_EOR, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET
from typing import Any

from vsock._client import cookie
from vsock._socket.state import SocketState
from vsock._system.green import Base
from vsock.errors import state_error

_marks: list[int] = []


def send(sock: Base, state: SocketState, buffers: Sequence[Any], flags: int) -> int:
    """Send several buffers as one message; EMSGSIZE if it is longer than a receive buffer of either side."""
    views = [memoryview(buffer) for buffer in buffers]
    length = sum(view.nbytes for view in views)
    if length == 0:
        # Nothing goes out: an empty message would read as the end.
        return 0
    if length > min(state.options.size, state.peer_buffer) and length > _longest(
        sock, state, length
    ):
        raise state_error(errno.EMSGSIZE)
    if flags & MSG_EOR:
        beside = [(SOL_SOCKET, SCM_RIGHTS, array.array("i", [_mark()]))]
        return Base.sendmsg(sock, views, beside, flags & ~MSG_EOR)
    return Base.sendmsg(sock, views, (), flags)


def received_flags(sock: Base, flags: int) -> int:
    """Return the flags of something received as AF_VSOCK has them."""
    if flags & MSG_CTRUNC:
        flags = flags & ~MSG_CTRUNC | (MSG_EOR if sock.type == SOCK_SEQPACKET else 0)
    return flags


def _longest(sock: Base, state: SocketState, length: int) -> int:
    """Return how long a message may be, after asking for the peer's newest buffer if `length` is not too long for ours."""
    if length <= state.options.size and state.node is not None:
        try:
            buffer = state.node.set_buffer(cookie(sock), 0)
        except OSError:
            buffer = 0
        if not buffer:
            # It is over, or only what came before is left: the system call has the right error.
            return length
        state.peer_buffer = buffer
    return min(state.options.size, state.peer_buffer)


def _mark() -> int:
    """Return a descriptor to send beside the end of a record; it gives its receiver nothing."""
    if not _marks:
        _marks.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    return _marks[0]

"""Taking connections from a listener so that none is lost; and a listener whose switch has ended.

The node sends a listener one message per connection, with a descriptor beside it. A process that
has no descriptor left would receive the message without it, and the connection would be gone; the
kernel's `accept` leaves it in the queue. So a message is received with MSG_PEEK first, which gives
its descriptor too or tells that there is no place for one, and only then taken. One thread and one
process does that at a time, so that the message taken is the one peeked at.

A listener whose switch has ended would be readable for ever, and the event loops of others would
call `accept` for ever, as a listener of AF_VSOCK never ends. So `accept` fails once, and from then
on the listener is silent, like one that nobody connects to.
"""

import contextlib
import errno
import fcntl
import os
import select
import struct
import threading
import time
from socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_CTRUNC,
    MSG_DONTWAIT,
    MSG_PEEK,
    SCM_RIGHTS,
    SOCK_DGRAM,
    SOL_SOCKET,
)
from typing import Final, NamedTuple

from vsock import _client
from vsock._client import INHERITED_SIZE, MESSAGE_SIZE, Op, Reply, Request
from vsock._socket import metadata
from vsock._system.green import Base
from vsock._system.waiting import wait
from vsock.errors import SwitchGone, state_error

_PATIENCE: Final = 1.0
"""How long to try to lock the listener, in seconds: a process that was stopped while it held the lock must not stop all others."""
_YIELDS: Final = 1000
"""How often to try before each further attempt waits a millisecond: one that is only behind needs the processor."""
_EPOLL_CTL_DEL: Final = 2
_lock = threading.Lock()


class Message(NamedTuple):
    """One message to a listener.

    Attributes:
        data: its bytes.
        fds: the descriptors beside it.
        was_cut: whether there was no place for some of these.
    """

    data: bytes
    fds: list[int]
    was_cut: bool

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)


def receive_accepted(sock: Base) -> tuple[Reply, bytes, int]:
    """Take the next ACCEPT from a listener: the reply, what LISTEN left, and the connection's descriptor.

    This waits as the socket's own timeout says, and raises what a timed-out `recv` raises.

    Raises:
        OSError: EMFILE, ENFILE: no descriptor is left; the connection stays in the queue.
        SwitchGone: the switch went away; raised once, and then nothing comes any more.
    """
    timeout = sock.gettimeout()
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            message = take_message(sock)
            if message is not None:
                return _accepted(sock, message)
            _wait(sock, deadline)
    except SwitchGone:
        _silence(sock)
        raise


def _wait(sock: Base, deadline: float | None) -> None:
    """Wait until something is there, as long as the socket's timeout and its options allow."""
    if deadline is not None and sock.gettimeout():
        if not wait(sock, select.POLLIN, deadline):
            raise TimeoutError("timed out")
        return
    with contextlib.suppress(ConnectionResetError):  # the end, which is read next
        Base.recv(sock, 1, MSG_PEEK)


def take_message(sock: Base) -> Message | None:
    """Take a message, alone among all that share the listener; None if there is none.

    Raises:
        OSError: EMFILE, ENFILE: no descriptor is left; the message stays.
    """
    with _lock:
        tries, deadline = 0, time.monotonic() + _PATIENCE
        while not (is_alone := _lock_file(sock, fcntl.LOCK_EX | fcntl.LOCK_NB)):
            if time.monotonic() > deadline:
                break
            if tries < _YIELDS:
                os.sched_yield()
            else:
                time.sleep(0.001)
            tries += 1
        try:
            return _take(sock, is_alone)
        finally:
            _lock_file(sock, fcntl.LOCK_UN)


def _lock_file(sock: Base, how: int) -> bool:
    """Lock or unlock a listener for this process; False if another process has the lock.

    Such a lock ends with its process.
    """
    try:
        fcntl.lockf(sock, how)
    except BlockingIOError:
        return False
    except (OSError, ValueError):  # closed by another thread, as the next call says
        return True
    return True


def _take(sock: Base, is_alone: bool) -> Message | None:
    """Take a message with its descriptor, both or none of them; None if nothing is there."""
    # With a timeout, Python's own calls would wait in spite of MSG_DONTWAIT.
    if Base.gettimeout(sock) and not wait(sock, select.POLLIN, 0.0):
        return None
    try:
        seen = _receive(sock, MSG_PEEK)
        if seen.was_cut and not seen.fds:
            raise _no_descriptor()
        if not is_alone:  # the next message may be another one, and its descriptor needs the place
            seen.close()
        taken = _receive(sock, 0)
    except BlockingIOError:
        return None
    if not is_alone:
        return taken
    if not taken.fds and taken.data == seen.data:  # there was room for one descriptor only
        return seen
    seen.close()
    return taken


def _receive(sock: Base, flags: int) -> Message:
    flags |= MSG_CMSG_CLOEXEC | MSG_DONTWAIT
    size, room = MESSAGE_SIZE + INHERITED_SIZE, CMSG_SPACE(4)
    try:
        data, ancillary, flags, _ = Base.recvmsg(sock, size, room, flags)
    except ConnectionResetError:
        return Message(b"", [], was_cut=False)
    fds = [
        fd
        for level, kind, passed in ancillary
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("@i", passed)
    ]
    return Message(data, fds, bool(flags & MSG_CTRUNC))


def _no_descriptor() -> OSError:
    """Return the error that the kernel's `accept` would give: EMFILE or ENFILE."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return state_error(error.errno or errno.EMFILE)
    return state_error(errno.EMFILE)  # there was none a moment ago


def _accepted(sock: Base, message: Message) -> tuple[Reply, bytes, int]:
    """Acknowledge an ACCEPT and return what it says."""
    try:
        if not message.data:
            raise SwitchGone(errno.ENODEV, "accept: the switch went away")
        reply, inherited = Reply.decode(message.data[:MESSAGE_SIZE]), message.data[MESSAGE_SIZE:]
        is_whole = len(inherited) in (0, INHERITED_SIZE)
        if reply.op != Op.ACCEPT or len(message.fds) != 1 or not is_whole:
            said = f"a listener got op {reply.op} with {len(message.fds)} file descriptors"
            raise _client.broken(said)
        _client.send(sock, Request(Op.ACCEPTED))
    except OSError:
        message.close()
        raise
    return reply, inherited, message.fds[0]


def _new_lock() -> None:
    """Begin with a free lock in a forked child: the thread that held it is not there."""
    global _lock  # noqa: PLW0603 - one for the process
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


def _silence(sock: Base) -> None:
    """Put a socket in the descriptor's place that is never readable and never hangs up.

    A Unix socket for datagrams without a name is one. Where other processes hold the old one too,
    an epoll instance would go on to report it; so it is removed from all epoll instances of this
    process.
    """
    fd, kept = sock.fileno(), metadata.read(sock)
    _forget(fd)
    is_blocking, is_inheritable = os.get_blocking(fd), os.get_inheritable(fd)
    # As the descriptor may be the last one free, and its own place the only one.
    with contextlib.suppress(OSError), Base(AF_UNIX, SOCK_DGRAM) as silent:
        os.set_blocking(silent.fileno(), is_blocking)
        os.dup2(silent.fileno(), fd, is_inheritable)
        if kept is not None:
            metadata.write(sock, kept)


def _forget(fd: int) -> None:
    """Remove `fd` from every epoll instance of this process."""
    # Late: at this moment nothing is in a hurry. `select.epoll` may have been patched away.
    import ctypes
    from pathlib import Path

    libc = ctypes.CDLL(None)
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(path.readlink()) == "anon_inode:[eventpoll]":
                libc.epoll_ctl(int(path.name), _EPOLL_CTL_DEL, fd, None)

"""Taking connections off a listener, so that none is lost, and what a listener becomes whose switch has ended.

Each connection is a message with a descriptor beside it. A process that has no descriptor left would get the
message without it, and the connection would be gone; the kernel's `accept` leaves it in the queue. So a message is looked at
first, which gives its descriptor too or tells that there is no place for one, and taken only then. One thread and one
process does that at a time: what was looked at is what is taken.

A listener whose switch has ended would be readable for ever, and the event loops of others would ask it for ever: a
listener of AF_VSOCK never ends. So it says it once and is silent from then on, as one that nobody connects to.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket as _socket
import struct
import threading
import time
from typing import Final, NamedTuple

from vsock import _endpoint, _note
from vsock._endpoint import INHERITED_SIZE, MESSAGE_SIZE, Op, Reply, Request
from vsock._green import Base as _Base
from vsock.errors import ProtocolError, SwitchGone, state_error

_TRIES: Final = 1000
"""How often to ask for another process's turn: one that was stopped in the middle of it must not stop all others."""
_EPOLL_CTL_DEL: Final = 2
_turn = threading.Lock()


class Message(NamedTuple):
    """One message of a listener: its bytes, the descriptors beside it, and whether there was no place for some."""

    data: bytes
    fds: list[int]
    was_cut: bool

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.fds:
            os.close(fd)


def receive_accepted(sock: _Base) -> tuple[Reply, bytes, int]:
    """Take the next ACCEPT off a listener: the reply, what LISTEN left, and the connection's descriptor.

    This waits as the socket's own timeout says, and raises what a timed-out `recv` raises.

    Raises:
        OSError: EMFILE, ENFILE: no descriptor is left; the connection stays in the queue.
        SwitchGone: the switch went away; this is said once, and then nothing comes any more.
    """
    timeout = sock.gettimeout()
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            message = take_in_turn(sock)
            if message is not None:
                return _accepted(sock, message)
            _wait(sock, deadline)
    except SwitchGone:
        _silence(sock)
        raise


def _wait(sock: _Base, deadline: float | None) -> None:
    """Wait until something is there, as long as the socket's timeout and its options allow."""
    if deadline is not None and sock.gettimeout():
        if not _endpoint.wait(sock, select.POLLIN, deadline):
            raise TimeoutError("timed out")
        return
    with contextlib.suppress(ConnectionResetError):  # the end, which is read next
        _Base.recv(sock, 1, _socket.MSG_PEEK)


def take_in_turn(sock: _Base) -> Message | None:
    """Take a message, and keep others that share the listener from taking what we look at; None if nothing is there.

    Raises:
        OSError: EMFILE, ENFILE: no descriptor is left; the message stays.
    """
    with _turn:
        tries = 0
        while not _lock(sock, fcntl.LOCK_EX | fcntl.LOCK_NB) and tries < _TRIES:
            os.sched_yield()
            tries += 1
        try:
            return _take(sock)
        finally:
            _lock(sock, fcntl.LOCK_UN)


def _lock(sock: _Base, how: int) -> bool:
    """Lock a listener, or give it free; tell whether there is nothing to wait for.

    Such a lock is a process's, and ends with it.
    """
    try:
        fcntl.lockf(sock, how)
    except BlockingIOError:
        return False
    except (OSError, ValueError):  # closed by another thread, as the next call says
        return True
    return True


def _take(sock: _Base) -> Message | None:
    """Take a message with its descriptor, both or none of them; None if nothing is there."""
    # With a timeout, Python's own calls would wait in spite of MSG_DONTWAIT.
    if _Base.gettimeout(sock) and not _endpoint.wait(sock, select.POLLIN, 0.0):
        return None
    try:
        seen = _receive(sock, _socket.MSG_PEEK)
        if seen.was_cut and not seen.fds:
            raise _no_descriptor()
        taken = _receive(sock, 0)
    except BlockingIOError:
        return None
    if not taken.fds and taken.data == seen.data:  # there was room for one descriptor only
        return seen
    seen.close()
    return taken


def _receive(sock: _Base, flags: int) -> Message:
    flags |= _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
    size, room = MESSAGE_SIZE + INHERITED_SIZE, _socket.CMSG_SPACE(4)
    try:
        data, ancillary, flags, _ = _Base.recvmsg(sock, size, room, flags)
    except ConnectionResetError:
        return Message(b"", [], was_cut=False)
    fds = [
        fd
        for level, kind, passed in ancillary
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS)
        for (fd,) in struct.iter_unpack("@i", passed)
    ]
    return Message(data, fds, bool(flags & _socket.MSG_CTRUNC))


def _no_descriptor() -> OSError:
    """Return the error that the kernel's `accept` would give: EMFILE or ENFILE."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return state_error(error.errno or errno.EMFILE)
    return state_error(errno.EMFILE)  # there was none a moment ago


def _accepted(sock: _Base, message: Message) -> tuple[Reply, bytes, int]:
    """Acknowledge an ACCEPT and return what it says."""
    try:
        if not message.data:
            raise SwitchGone(errno.ENODEV, "accept: the switch went away")
        reply, inherited = Reply.decode(message.data[:MESSAGE_SIZE]), message.data[MESSAGE_SIZE:]
        is_whole = len(inherited) in (0, INHERITED_SIZE)
        if reply.op != Op.ACCEPT or len(message.fds) != 1 or not is_whole:
            said = f"a listener got op {reply.op} with {len(message.fds)} file descriptors"
            raise ProtocolError(errno.EPROTO, f"endpoint protocol: {said}")
        _endpoint.send(sock, Request(Op.ACCEPTED))
    except OSError:
        message.close()
        raise
    return reply, inherited, message.fds[0]


def _new_turn() -> None:
    """Begin with nobody's turn in a forked child: no thread is there that could end one."""
    global _turn  # noqa: PLW0603 - one for the process
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_new_turn)


def _silence(sock: _Base) -> None:
    """Put a socket in the descriptor's place that is never readable and never hangs up.

    That is one of datagrams without a name. Where other processes hold the old one too, an epoll instance
    would go on about it; so it is taken out of all that this process has.
    """
    fd, note = sock.fileno(), _note.read(sock)
    _forget(fd)
    is_blocking, is_inheritable = os.get_blocking(fd), os.get_inheritable(fd)
    # As the descriptor may be the last one free, and its own place the only one.
    with contextlib.suppress(OSError), _Base(_socket.AF_UNIX, _socket.SOCK_DGRAM) as silent:
        os.set_blocking(silent.fileno(), is_blocking)
        os.dup2(silent.fileno(), fd, is_inheritable)
        if note is not None:
            _note.write(sock, note)


def _forget(fd: int) -> None:
    """Take `fd` out of every epoll instance of this process, whoever made it."""
    # Late: at this moment nothing is in a hurry. `select.epoll` may have been patched away.
    import ctypes
    from pathlib import Path

    libc = ctypes.CDLL(None)
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(path.readlink()) == "anon_inode:[eventpoll]":
                libc.epoll_ctl(int(path.name), _EPOLL_CTL_DEL, fd, None)

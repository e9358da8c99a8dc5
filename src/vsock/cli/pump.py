"""Copies between a socket and a pair of files, in both directions, and passes each half-close on.

A thread sends while the caller receives, both with plain blocking calls: standard input and output
may be terminals, pipes or files, and must not be made non-blocking, because other processes share them.
"""

import os
import select
import socket
import threading
from contextlib import suppress
from typing import Final

from vsock._system.descriptors import write_all

__all__ = ["carry"]

_PIECE: Final = 256 * 1024
_MESSAGE: Final = 64 * 1024


def carry(connection: socket.socket, source: int, sink: int, *, escape: bytes = b"") -> None:
    """Sends the data of `source` and writes received data to `sink`, until both directions end.

    The end of `source` shuts down the sending direction only, and the end of the peer's data does not stop
    it. After the peer has closed both directions, `source` is not read any more. The byte `escape` from
    `source`, if given, ends both directions.

    Raises:
        OSError: reading, writing or the connection failed; BrokenPipeError when `sink` is gone.
    """
    failures: list[OSError] = []
    sender = threading.Thread(
        target=_send, args=(connection, source, escape, failures), daemon=True
    )
    sender.start()
    while piece := connection.recv(_PIECE):
        write_all(sink, piece)
    # POLLHUP: both directions are shut down, by the peer's close or because it is gone.
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    if failures:
        raise failures[0]


def _send(connection: socket.socket, source: int, escape: bytes, failures: list[OSError]) -> None:
    how = socket.SHUT_WR
    is_stream = connection.type == socket.SOCK_STREAM
    try:
        while piece := os.read(source, _PIECE if is_stream else _MESSAGE):
            if escape and escape in piece:
                how = socket.SHUT_RDWR
                break
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break  # the peer reads no more; its data is still copied
    except OSError as error:
        failures.append(error)
    with suppress(OSError):
        connection.shutdown(how)

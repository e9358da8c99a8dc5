"""Conversations of a program with the switch, each of which can be interrupted after every step.

A conversation is a generator. It yields the name of each step after the step; ``CALL`` asks the test to let the guest
connect to `PORT`. Closing the generator closes its sockets, as the end of a process does.

``python -m tests.bad_input.conversations DIRECTORY NAME`` runs one conversation: it prints the name of each step, and does
the next step after it has read a line. So a test can kill it at any step.
"""

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bad_input.lab import DEADLINE, DEAF, ECHO, SILENT
from tests.bad_input.raw import ANY, DOORS, reply

from vsock._client import Op, Request
from vsock._socket.accept_queue import receive_accepted

PORT = 7300
"""The port on which programs listen."""
CALL = "the guest calls"
PATIENT = 20_000
"""Connect timeout in milliseconds, so long that the attempt does not end by itself."""

Steps = Iterator[str]
CONVERSATIONS: dict[str, Callable[[Path], Steps]] = {}


def conversation(steps: Callable[[Path], Steps]) -> Callable[[Path], Steps]:
    """Adds a conversation to the table, by its name."""
    CONVERSATIONS[steps.__name__] = steps
    return steps


class Program:
    """The sockets of a program; they close together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sockets = contextlib.ExitStack()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._sockets.close()

    def dial(self, door: str) -> socket.socket:
        """A socket of the program, connected to a socket of the switch."""
        kind = DOORS.get(door, socket.SOCK_STREAM)
        client = self._sockets.enter_context(socket.socket(socket.AF_UNIX, kind))
        client.settimeout(DEADLINE)
        client.connect(str(self._directory / door))
        return client

    def keep(self, fd: int) -> socket.socket:
        """Keep a descriptor that the program received, until it closes."""
        kept = self._sockets.enter_context(socket.socket(fileno=fd))
        kept.settimeout(DEADLINE)
        return kept

    def listen(self, door: str, backlog: int) -> socket.socket:
        """A listener."""
        listener = self.dial(door)
        for request in (Request(Op.BIND, ANY, PORT), Request(Op.LISTEN, value=backlog)):
            listener.sendall(request.encode())
            answer = reply(listener)
            assert answer, "an answer"
            assert not answer.errno, answer
        return listener


def connected(program: Program, door: str, port: int) -> socket.socket:
    """A connection to the guest."""
    client = program.dial(door)
    client.sendall(Request(Op.CONNECT, 3, port, PATIENT).encode())
    answer = reply(client)
    assert answer, "an answer"
    assert not answer.errno, answer
    return client


@conversation
def asking(directory: Path) -> Steps:
    """Requests without a socket of their own."""
    with Program(directory) as program:
        client = program.dial("stream")
        yield "came"
        for request, rest in (
            (Request(Op.LOCAL_CID), b""),
            (Request(Op.RESOLVE, extra=5), b"alpha"),
            (Request(Op.FLOW, 1), b""),
        ):
            client.sendall(request.encode() + rest)
            yield f"{request.op} asked"
            reply(client)
            yield f"{request.op} answered"


def _listening(directory: Path, door: str) -> Steps:
    with Program(directory) as program:
        listener = program.dial(door)
        listener.sendall(Request(Op.BIND, ANY, PORT).encode())
        yield "bind asked"
        reply(listener)
        yield "bound"
        listener.sendall(Request(Op.LISTEN, value=5).encode())
        yield "listen asked"
        reply(listener)
        yield "listens"
        listener.sendall(Request(Op.LISTEN, value=9).encode())
        yield "listens again"
        if door == "stream":
            listener.sendall(Request(Op.ACCEPTED).encode()[:7])
            yield "said a part"


@conversation
def listening(directory: Path) -> Steps:
    """A listener, up to its first connection."""
    yield from _listening(directory, "stream")


@conversation
def listening_for_messages(directory: Path) -> Steps:
    """The same with SOCK_SEQPACKET."""
    yield from _listening(directory, "seqpacket")


@conversation
def accepting(directory: Path) -> Steps:
    """A listener with a backlog, and an accepted connection."""
    with Program(directory) as program:
        listener = program.listen("stream", backlog=2)
        for waiting in range(1, 4):
            yield CALL
            yield f"{waiting} wait"
        message, fds, _, _ = socket.recv_fds(listener, 32, 1)
        assert (len(message), len(fds)) == (32, 1)
        ours = program.keep(fds[0])
        yield "took one and did not say so"
        listener.sendall(Request(Op.ACCEPTED).encode())
        yield "said so"
        ours.sendall(b"half of what")
        yield "sent"
        ours.shutdown(socket.SHUT_WR)
        yield "said its end"
        listener.close()
        yield "listens no more"


@conversation
def connecting(directory: Path) -> Steps:
    """A blocking connect to a guest that is not attached."""
    with Program(directory) as program:
        client = program.dial("stream")
        client.sendall(Request(Op.BIND, ANY, PORT).encode())
        reply(client)
        client.sendall(Request(Op.CONNECT, SILENT, 1, PATIENT).encode())
        yield "asked"
        client.sendall(b"impatient")
        yield "sent before the verdict"
        client.shutdown(socket.SHUT_WR)
        yield "said its end before the verdict"


@conversation
def connecting_without_waiting(directory: Path) -> Steps:
    """A held request, unread in the socket."""
    with Program(directory) as program:
        for door in ("stream", "seqpacket"):
            client = program.dial(door)
            request = Request(Op.CONNECT, SILENT, 1, PATIENT, extra=2016, flags=3)
            client.sendall(request.encode() + bytes(2016))
            yield f"asked by {door}"
        late = program.dial("stream")
        late.sendall(
            Request(Op.CONNECT, 3, ECHO, PATIENT, extra=2016, flags=3).encode() + bytes(2016)
        )
        yield "asked a guest that answers"
        assert late.recv(1, socket.MSG_PEEK) != b""
        yield "verdict unread"


@conversation
def refused(directory: Path) -> Steps:
    """Failed attempts to connect; the socket keeps its port."""
    with Program(directory) as program:
        client = program.dial("stream")
        client.sendall(Request(Op.BIND, ANY, PORT).encode())
        reply(client)
        for cid, port in ((3, 1), (99, 1), (SILENT, 1)):
            client.sendall(Request(Op.CONNECT, cid, port, 100).encode())
            yield f"asked {cid}"
            reply(client)
            yield f"heard of {cid}"


def _talking(directory: Path, door: str) -> Steps:
    with Program(directory) as program:
        client = connected(program, door, ECHO)
        yield "connected"
        client.sendall(b"there and back")
        yield "sent"
        client.recv(1, socket.MSG_PEEK)
        yield "has not read"
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                client.send(bytes(4096))
        yield "sends more than it reads"
        client.shutdown(socket.SHUT_WR)
        yield "said its end"
        client.shutdown(socket.SHUT_RD)
        yield "reads no more"


@conversation
def talking(directory: Path) -> Steps:
    """A stream of bytes in both directions."""
    yield from _talking(directory, "stream")


@conversation
def not_listening(directory: Path) -> Steps:
    """The guest sends as much as it can, and the program does not read."""
    with Program(directory) as program:
        client = connected(program, "stream", DEAF)
        client.recv(1, socket.MSG_PEEK)
        yield "reads nothing"
        client.sendall(b"never read")
        yield "sent what nobody reads"
        client.shutdown(socket.SHUT_RD)
        yield "reads no more"


@conversation
def among_programs(directory: Path) -> Steps:
    """Both ends are here (CID 1)."""
    with Program(directory) as program:
        listener = program.listen("seqpacket", backlog=1)
        client = program.dial("seqpacket")
        client.sendall(Request(Op.CONNECT, 1, PORT, PATIENT).encode())
        yield "asked"
        reply(client)
        yield "connected"
        client.sendall(bytes(1000))
        client.sendall(bytes(100_000))
        yield "sent"
        answer, _, fd = receive_accepted(listener)
        accepted = program.keep(fd)
        assert len(accepted.recv(2000)) == 1000, answer
        yield "took one message"
        client.close()
        yield "closed one end"


@conversation
def hybrid(directory: Path) -> Steps:
    """A hybrid socket: the line in pieces, then bytes."""
    with Program(directory) as program:
        client = program.dial("guests/alpha.vsock")
        yield "came"
        client.sendall(b"CONNE")
        yield "said a part"
        client.sendall(f"CT {ECHO}\nhello".encode())
        yield "asked and sent"
        client.recv(1, socket.MSG_PEEK)
        yield "has not read"
        client.shutdown(socket.SHUT_WR)
        yield "said its end"
        refused = program.dial("guests/alpha.vsock")
        refused.sendall(b"CONNECT 1\nhello")
        yield "asked for nothing"


@conversation
def datagrams(directory: Path) -> Steps:
    """A receiver that does not read, and a sender."""
    with Program(directory) as program:
        receiver, sender = program.dial("dgram"), program.dial("dgram")
        receiver.sendall(Request(Op.BIND, ANY, PORT).encode())
        yield "bind asked"
        bound = reply(receiver)
        assert bound, "an answer"
        yield "bound"
        for _ in range(500):  # some are dropped
            sender.sendall(Request(Op.SEND, 2, PORT, buffer=bound.flow, extra=4).encode() + b"data")
            reply(sender)
        yield "sent to itself"
        to_guest = Request(Op.SEND, 3, PORT, buffer=bound.flow, extra=4).encode() + b"data"
        sender.sendall(to_guest)
        yield "sent to a guest"


def main(directory: str, name: str) -> None:
    """Run one conversation: one step for each line of standard input."""
    for step in CONVERSATIONS[name](Path(directory)):
        print(step, flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])

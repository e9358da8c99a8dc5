"""Messages of the client protocol; test_sockets.py has the exchange, with a real node."""

import errno
import os
import resource
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsock import ProtocolError, SwitchGone
from vsock._client import (
    MESSAGE_SIZE,
    Op,
    Reply,
    Request,
    ask,
    receive,
)
from vsock._socket.accept_queue import receive_accepted

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))


@given(st.builds(Request, U8, U32, U32, U32, U64, U32, st.sampled_from([0, 1])))
def test_request_encoded_and_decoded_is_itself(request):
    """A request survives the wire, in 32 bytes."""
    assert len(request.encode()) == MESSAGE_SIZE
    assert Request.decode(request.encode()) == request


@given(st.builds(Reply, U8, U16, U32, U32, U32, U32, U32, U64))
def test_reply_encoded_and_decoded_is_itself(reply):
    """A reply survives the wire, in 32 bytes."""
    assert len(reply.encode()) == MESSAGE_SIZE
    assert Reply.decode(reply.encode()) == reply


def test_request_encoded_has_the_documented_bytes():
    """The layout is the one in docs/reference/client-protocol.md, byte for byte."""
    request = Request(Op.CONNECT, 3, 0x01020304, 2000, 262144, 2016, 1)
    assert request.encode().hex(" ", 4) == (
        "01020100 03000000 04030201 d0070000 00000400 00000000 e0070000 00000000"
    )


def test_reply_decoded_has_the_documented_fields():
    """The layout is the one in docs/reference/client-protocol.md, byte for byte."""
    wire = "01026800 02000000 e8030000 03000000 50000000 00000400 2a000000 00000000"
    expected = Reply(Op.CONNECT, errno.ECONNRESET, 2, 1000, 3, 80, 262144, 42)
    assert Reply.decode(bytes.fromhex(wire)) == expected


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "0 bytes"),
        (bytes(31), "31 bytes"),
        (b"\2" + bytes(31), "version 2"),
    ],
)
def test_wrong_message_decoded_raises(message, reason):
    """A truncated message, or one of another version, is an error."""
    for kind in (Request, Reply):
        with pytest.raises(ProtocolError, match=reason):
            kind.decode(message)


@pytest.mark.parametrize("offset", [2, 3, 28, 31])
def test_request_with_a_reserved_bit_decoded_raises(offset):
    """Reserved bits are an error, so that they can get a meaning later."""
    message = bytearray(Request(Op.BIND).encode())
    message[offset] |= 0x80
    with pytest.raises(ProtocolError, match="reserved"):
        Request.decode(bytes(message))


@pytest.fixture
def ends():
    """A client's end, and the bare end of its server."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_reply_received_leaves_what_is_behind_it(ends):
    """The bytes after the 32 of a reply belong to the stream and are not read."""
    ours, theirs = ends
    theirs.sendall(Reply(Op.CONNECT, 0, 2, 5).encode() + b"data")
    assert receive(ours, Op.CONNECT, time.monotonic() + 5) == Reply(Op.CONNECT, 0, 2, 5)
    assert ours.recv(10) == b"data"


def test_part_of_a_reply_by_the_deadline_raises(ends):
    """A node that stops in the middle of a message breaks the protocol."""
    ends[1].sendall(Reply(Op.CONNECT).encode()[:10])
    with pytest.raises(ProtocolError, match="cut"):
        receive(ends[0], Op.CONNECT, time.monotonic())


def test_nothing_received_by_the_deadline_is_none(ends):
    """Without an answer by the deadline, the result is None."""
    assert receive(ends[0], Op.CONNECT, time.monotonic()) is None


def test_reply_to_another_request_raises(ends):
    """An answer to another request breaks the protocol."""
    ends[1].sendall(Reply(Op.LISTEN).encode())
    with pytest.raises(ProtocolError, match="answers 3"):
        receive(ends[0], Op.BIND, time.monotonic() + 5)


def test_end_of_file_instead_of_a_reply_raises_switch_gone(ends):
    """The end of a node is another error than a wrong answer."""
    ends[1].close()
    with pytest.raises(SwitchGone):
        ask(ends[0], Request(Op.LOCAL_CID))


def test_accept_without_a_descriptor_raises(ends):
    """An ACCEPT must have a descriptor."""
    ends[1].sendall(Reply(Op.ACCEPT).encode())
    with pytest.raises(ProtocolError, match="0 file descriptors"):
        receive_accepted(ends[0])


def test_accept_without_a_free_descriptor_raises_emfile_and_takes_nothing(ends):
    """A process without free descriptors gets EMFILE, and later the connection (A4)."""
    ours, theirs = ends
    with socket.socket() as other:
        socket.send_fds(theirs, [Reply(Op.ACCEPT).encode()], [other.fileno()])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(OSError, match="Too many") as caught:
            receive_accepted(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    os.close(receive_accepted(ours)[2])
    assert Request.decode(theirs.recv(100)) == Request(Op.ACCEPTED)


def test_descriptor_with_a_wrong_message_is_closed(ends):
    """A descriptor that arrived with a wrong message does not stay open."""
    ours, theirs = ends
    left, right = socket.socketpair()
    with left:
        socket.send_fds(theirs, [Reply(Op.BIND).encode()], [right.fileno()])
        right.close()
        with pytest.raises(ProtocolError, match="op 1"):
            receive_accepted(ours)
        assert left.recv(1) == b""

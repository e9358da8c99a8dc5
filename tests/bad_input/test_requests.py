"""Invalid requests on the node's sockets: docs/reference/client-protocol.md, Bad requests."""

import contextlib
import os
import random
import socket

import pytest
from tests.bad_input.lab import DEADLINE, ECHO, Lab
from tests.bad_input.raw import ANY, DOORS, REQUESTS, ask, changed, dial, name, reply, send_passing

from vsock._client import MESSAGE_SIZE, Op, Request

EVERY = pytest.mark.parametrize("door", DOORS)
MESSAGES = pytest.mark.parametrize("door", ["seqpacket", "dgram"])
UNUSED = {
    "BIND": [2, 3, *range(12, 32)],
    "CONNECT": [3, *range(25, 32)],
    "LISTEN": [2, 3, *range(4, 12), *range(24, 32)],
    "LOCAL_CID": [2, 3, *range(4, 32)],
    "RESOLVE": [2, 3, *range(4, 24), *range(28, 32)],
    "FLOW": [2, 3, *range(12, 16), *range(24, 32)],
    "SEND": [2, 3, *range(12, 16), *range(28, 32)],
    "ACCEPTED": [2, 3, *range(4, 32)],
}
"""Offsets of bytes that must be zero."""


def refused(lab: Lab, door: str, request: bytes) -> None:
    """The request is answered with EPROTO and ends the connection."""
    with dial(lab, door) as client:
        assert ask(client, request) == "EPROTO", request.hex(" ", 4)
        assert reply(client) is None


@pytest.mark.parametrize("cut_by", ["close", "shutdown"])
@pytest.mark.parametrize("what", REQUESTS)
def test_stream_request_cut_at_every_byte_is_refused(lab: Lab, what: str, cut_by: str) -> None:
    """The program closes or shuts down in the middle; an empty connection is no request."""
    before = lab.bad_requests()
    for length in range(MESSAGE_SIZE):
        with dial(lab, "stream") as client:
            client.sendall(REQUESTS[what][:length])
            if cut_by == "shutdown":
                client.shutdown(socket.SHUT_WR)
                assert name(reply(client)) == ("EPROTO" if length else "END")
                assert reply(client) is None
    expected = before + MESSAGE_SIZE - 1
    lab.wait_until("each is counted", lambda: lab.bad_requests() == expected)


@MESSAGES
@pytest.mark.parametrize("what", REQUESTS)
def test_message_cut_at_every_byte_is_refused(lab: Lab, door: str, what: str) -> None:
    """A message contains a whole request or is invalid, also if it is empty."""
    before = lab.bad_requests()
    lengths = [*range(MESSAGE_SIZE), *range(MESSAGE_SIZE, len(REQUESTS[what]), 101)]
    for length in lengths:
        refused(lab, door, REQUESTS[what][:length])
    assert lab.bad_requests() == before + len(lengths)


@MESSAGES
@pytest.mark.parametrize("what", REQUESTS)
def test_message_that_is_too_long_is_refused(lab: Lab, door: str, what: str) -> None:
    """By a byte, by a whole request, and by more than any request may have."""
    before = lab.bad_requests()
    for more in (1, MESSAGE_SIZE, 5000, 80_000):
        refused(lab, door, REQUESTS[what] + bytes(more))
    assert lab.bad_requests() == before + 4


@EVERY
def test_every_other_version_is_refused(lab: Lab, door: str) -> None:
    """Only version 1 is accepted."""
    for version in (0, *range(2, 256)):
        refused(lab, door, changed(REQUESTS["LOCAL_CID"], 0, version))


@EVERY
def test_every_unknown_operation_is_refused(lab: Lab, door: str) -> None:
    """Unknown operations, and those that only the node sends."""
    for op in (0, Op.ACCEPT, *range(Op.RECEIVED, 256)):
        refused(lab, door, changed(REQUESTS["LOCAL_CID"], 1, op))


@EVERY
@pytest.mark.parametrize("what", UNUSED)
def test_every_field_without_meaning_must_be_zero(lab: Lab, door: str, what: str) -> None:
    """An ignored field could not get a meaning in a later version."""
    before = lab.bad_requests()
    request = REQUESTS.get(what, Request(Op.ACCEPTED).encode())
    for offset in UNUSED[what]:
        refused(lab, door, changed(request, offset, 0x40))
    assert lab.bad_requests() == before + len(UNUSED[what])


@EVERY
@pytest.mark.parametrize(
    "request_",
    [
        Request(Op.CONNECT, 3, 1, extra=4097, flags=1),
        Request(Op.CONNECT, 3, 1, extra=0xFFFFFFFF, flags=1),
        Request(Op.CONNECT, 3, 1, flags=1),
        Request(Op.CONNECT, 3, 1, extra=7, flags=3),
        Request(Op.CONNECT, 3, 1, extra=8, flags=2),
        Request(Op.CONNECT, 3, 1, extra=7),
        Request(Op.RESOLVE),
        Request(Op.RESOLVE, extra=256),
        Request(Op.RESOLVE, extra=0xFFFFFFFF),
        Request(Op.SEND, 2, 7000, extra=69_609),
        Request(Op.SEND, 2, 7000, extra=0xFFFFFFFF),
    ],
)
def test_announced_length_out_of_range_is_refused(lab: Lab, door: str, request_: Request) -> None:
    """The announced length counts, not the number of bytes that follow."""
    refused(lab, door, request_.encode())
    refused(lab, door, request_.encode() + bytes(min(request_.extra, 4000)))


@pytest.mark.parametrize("what", ["held CONNECT", "full LISTEN", "RESOLVE", "SEND"])
def test_stream_request_whose_rest_comes_later_is_refused(lab: Lab, what: str) -> None:
    """Such a request must be sent in one piece, otherwise padding would be taken for data."""
    for length in (MESSAGE_SIZE, len(REQUESTS[what]) - 1):
        refused(lab, "stream", REQUESTS[what][:length])


@pytest.mark.parametrize("what", ["BIND", "CONNECT", "LISTEN", "LOCAL_CID", "FLOW"])
def test_stream_request_byte_by_byte_is_a_request(lab: Lab, what: str) -> None:
    """A stream has no pieces."""
    with dial(lab, "stream") as whole, dial(lab, "stream") as client:
        expected = ask(whole, REQUESTS[what])
        assert expected != "EPROTO"
        for byte in REQUESTS[what]:
            client.sendall(bytes([byte]))
        assert name(reply(client)) == expected


def test_requests_of_many_clients_byte_by_byte_are_requests(lab: Lab) -> None:
    """No client waits for another client's next byte."""
    clients = [dial(lab, "stream") for _ in range(50)]
    for byte in REQUESTS["BIND"]:
        for client in clients:
            client.sendall(bytes([byte]))
    for client in clients:
        with client:
            assert name(reply(client)) == "OK"


BOUND = [Request(Op.BIND, ANY, ANY)]
LISTENING = [*BOUND, Request(Op.LISTEN, value=1)]


@pytest.mark.parametrize(
    ("door", "first", "then", "answer"),
    [
        ("stream", [], "LISTEN", "EINVAL"),
        ("stream", [], "SEND", "EPROTO"),
        ("seqpacket", [], "SEND", "EPROTO"),
        ("stream", BOUND, "BIND", "EINVAL"),
        *(("stream", BOUND, what, "EPROTO") for what in ("LOCAL_CID", "RESOLVE", "FLOW", "SEND")),
        *(
            (door, LISTENING, what, "EPROTO")
            for door in ("stream", "seqpacket")
            for what in REQUESTS
            if "LISTEN" not in what
        ),
        ("dgram", BOUND, "BIND", "EINVAL"),
        ("dgram", BOUND, "LISTEN", "EOPNOTSUPP"),
        ("dgram", [], "CONNECT", "EOPNOTSUPP"),
        ("dgram", [], "held CONNECT", "EOPNOTSUPP"),
        ("dgram", [], "SEND", "EBADF"),
    ],
)
def test_request_out_of_order(
    lab: Lab, door: str, first: list[Request], then: str, answer: str
) -> None:
    """Either EPROTO and the end, or an errno after which the client can try again; the reply names the request."""
    before = lab.bad_requests()
    with dial(lab, door) as client:
        for request in first:
            assert ask(client, request.encode()) == "OK"
        client.sendall(REQUESTS[then])
        said = reply(client)
        assert (said and said.op, name(said)) == (REQUESTS[then][1], answer)
        if answer == "EPROTO":
            assert reply(client) is None
        else:
            assert ask(client, Request(99).encode()) == "EPROTO"
    assert lab.bad_requests() == before + 1


@pytest.mark.parametrize("door", ["stream", "seqpacket"])
def test_accepted_without_an_accept(lab: Lab, door: str) -> None:
    """It is out of order without a listener; for a listener it has no effect."""
    refused(lab, door, Request(Op.ACCEPTED).encode())
    with dial(lab, door) as listener:
        for request in LISTENING:
            assert ask(listener, request.encode()) == "OK"
        for _ in range(20):
            listener.sendall(Request(Op.ACCEPTED).encode())
        refused_again = Request(99).encode()
        assert ask(listener, refused_again) == "EPROTO"


def test_requests_behind_one_that_ends_the_connection_are_not_carried_out(lab: Lab) -> None:
    """The second request, a bind, does not take its port."""
    bad, bind = Request(99).encode(), Request(Op.BIND, ANY, 7100).encode()
    with dial(lab, "stream") as client, dial(lab, "stream") as other:
        assert ask(client, bad + bind * 100) == "EPROTO"
        assert reply(client) is None
        assert ask(other, bind) == "OK"


@EVERY
@pytest.mark.parametrize("count", [1, 2, 253])
def test_descriptors_with_a_request_are_closed(lab: Lab, door: str, count: int) -> None:
    """Any number of them, or they are refused; the request itself is served."""
    left, right = socket.socketpair()
    with left, dial(lab, door) as client:
        send_passing(client, REQUESTS["LOCAL_CID"], [right.fileno()] * count)
        right.close()
        assert name(reply(client)) == "OK"
        left.settimeout(DEADLINE)
        assert left.recv(1) == b"", "nobody has the other end any more"


@EVERY
def test_descriptors_with_part_of_a_request_are_closed(lab: Lab, door: str) -> None:
    """MSG_PEEK does not look past a descriptor, so the switch does not wait for the rest, unless it refuses them."""
    left, right = socket.socketpair()
    with left, dial(lab, door) as client:
        is_passed = send_passing(client, REQUESTS["LOCAL_CID"][:10], [right.fileno()])
        if is_passed or DOORS[door] == socket.SOCK_SEQPACKET:
            assert name(reply(client)) == "EPROTO"
            assert reply(client) is None
        else:
            assert ask(client, REQUESTS["LOCAL_CID"][10:]) == "OK"
        right.close()
        left.settimeout(DEADLINE)
        assert left.recv(1) == b""


def test_descriptors_with_data_of_a_connection_are_closed(lab: Lab) -> None:
    """The switch closes the descriptors and forwards the bytes."""
    left, right = socket.socketpair()
    with left, dial(lab, "stream") as client:
        assert ask(client, Request(Op.CONNECT, 3, ECHO, 20_000).encode()) == "OK"
        for _ in range(10):
            send_passing(client, b"data", [right.fileno()] * 100)
        right.close()
        with client.makefile("rb") as file:
            assert file.read(40) == b"data" * 10
        left.settimeout(DEADLINE)
        assert left.recv(1) == b""


def test_connection_sent_over_itself_is_closed(lab: Lab) -> None:
    """The kernel collects a socket that only contains itself."""
    with dial(lab, "seqpacket") as client:
        socket.send_fds(client, [REQUESTS["LOCAL_CID"][:10]], [client.fileno()] * 10)
        assert name(reply(client)) == "EPROTO"


@EVERY
def test_client_that_never_reads_is_ended(lab: Lab, door: str) -> None:
    """It may have one unread reply, not hundreds; other clients are served meanwhile."""
    before = lab.bad_requests()
    with dial(lab, door) as client:
        with contextlib.suppress(BrokenPipeError):
            while True:
                client.sendall(REQUESTS["LOCAL_CID"])
        assert lab.is_well()
        replies = 0
        while reply(client):
            replies += 1
        assert replies > 100
    assert lab.bad_requests() == before + 1


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (changed(REQUESTS["BIND"], 0, 7), "version 7 is not spoken here"),
        (changed(REQUESTS["BIND"], 1, 77), "operation 77 is unknown"),
        (changed(REQUESTS["BIND"], 31, 1), "a field has a value that it must not have"),
        (REQUESTS["BIND"] + b"?", "a request of the wrong length"),
        (Request(Op.ACCEPTED).encode(), "a request out of order"),
    ],
)
def test_log_says_what_was_bad_and_whose_it_was(lab: Lab, request_: bytes, line: str) -> None:
    """Beyond the rate limit, lines are only counted."""
    said = f"request of pid {os.getpid()}: {line}"
    lab.wait_for_line(said, lambda: refused(lab, "seqpacket", request_))


@EVERY
def test_noise_ends_in_a_reply_or_the_end(lab: Lab, door: str) -> None:
    """Random bytes, half of them after the beginning of a request."""
    print("seed", seed := 31)
    chance = random.Random(seed)
    for _ in range(300):
        noise = chance.randbytes(chance.choice([1, 31, 32, 33, 64, 500]))
        if chance.random() < 0.5:
            noise = bytes([1, chance.randrange(12)]) + noise
        with dial(lab, door) as client:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            while reply(client):
                pass

"""SEQPACKET: messages, their ends and their limits (section 7)."""

import signal
import socket
from typing import Any

from tests.oracle.case import OK, Steps, case, do, family, since
from tests.oracle.cases.transfers import pattern
from tests.oracle.env import BUFFER_MAX_SIZE, BUFFER_SIZE, SEQPACKET, Env

NOW = socket.MSG_DONTWAIT
PEEK = socket.MSG_PEEK
TRUNC = socket.MSG_TRUNC
EOR = socket.MSG_EOR
QUIET = socket.MSG_NOSIGNAL
BUFFER = 256 * 1024
PEEKS = "6.6"
TOO_LONG = since("6.7", "EMSGSIZE", before="ENOMEM")
"""Older kernels return one errno for all errors of the transport."""


@case("7")
def boundaries(env: Env) -> Steps:
    """One recv() returns one message, also if more messages wait."""
    client, server = env.pair(SEQPACKET)
    for message in (b"one", b"second", b"3"):
        yield do(client.send, message), len(message)
    for message in (b"one", b"second", b"3"):
        yield do(server.recv, 100), message


@family("7", {"1": 1, "4 KiB": 4096, "64 KiB and 1": 65537, "200000": 200_000, "buffer": BUFFER})
def size(env: Env, length: int) -> Steps:
    """Messages of all sizes up to the buffer's arrive whole."""
    client, server = env.pair(SEQPACKET)
    data = pattern(length)
    for sender, receiver in ((client, server), (server, client)):
        yield do(sender.send, data), length
        yield do(receiver.recv, BUFFER + 1) == data, True


@case("7")
def too_long(env: Env) -> Steps:
    """A message longer than the buffer is EMSGSIZE, and nothing of it is sent."""
    client, server = env.pair(SEQPACKET)
    yield do(client.send, bytes(BUFFER + 1)), TOO_LONG
    yield do(client.send, b"fits"), 4
    yield do(server.recv, 100), b"fits"


@case("7")
def too_long_for_the_receiver(env: Env) -> Steps:
    """The receiver's buffer limits the length."""
    listener = env.listener(SEQPACKET)
    env.set_size(listener, BUFFER_SIZE, 5000)
    client = env.connected_to(listener, SEQPACKET)
    server = env.accept(listener)
    yield do(client.send, bytes(5001)), TOO_LONG
    yield do(client.send, bytes(5000)), 5000
    yield len(server.recv(9000)), 5000


@case("7")
def too_long_for_the_sender(env: Env) -> Steps:
    """The sender's own buffer limits the length too."""
    client, _ = env.pair(SEQPACKET)
    env.set_size(client, BUFFER_SIZE, 5000)
    fixed = ("6.1.192", "6.12.76")
    yield do(client.send, bytes(5001)), since("7.0", TOO_LONG, before=5001, backports=fixed)
    yield do(client.send, bytes(5000)), 5000


@case("10.1")
def larger_buffers(env: Env) -> Steps:
    """With larger buffers on both sides, messages can be larger."""
    listener, client = env.listener(SEQPACKET), env.socket(SEQPACKET)
    for sock in (listener, client):
        env.set_size(sock, BUFFER_MAX_SIZE, 1 << 20)
        env.set_size(sock, BUFFER_SIZE, 1 << 20)
    client.connect(env.at(listener))
    server = env.accept(listener)
    data = pattern(1 << 20)
    yield do(client.send, data + b"x"), TOO_LONG
    yield do(client.send, data), 1 << 20
    yield do(server.recv, 2 << 20) == data, True


@case("7")
def short_read(env: Env) -> Steps:
    """The rest of a message that does not fit is lost, and the next message is whole."""
    client, server = env.pair(SEQPACKET)
    client.send(b"0123456789")
    client.send(b"next")
    yield do(server.recv, 4), b"0123"
    yield do(server.recv, 100), b"next"


@case("7")
def short_read_flags(env: Env) -> Steps:
    """msg_flags has MSG_TRUNC if bytes were lost."""
    client, server = env.pair(SEQPACKET)
    client.send(b"0123456789")
    client.send(b"0123456789")
    yield do(server.recvmsg, 4), (b"0123", [], TRUNC, None)
    yield do(server.recvmsg, 10), (b"0123456789", [], 0, None)


@case("7")
def short_read_length(env: Env) -> Steps:
    """With MSG_TRUNC the length of the whole message is returned."""
    client, server = env.pair(SEQPACKET)
    buffer = bytearray(16)
    client.send(bytes(range(32)))
    yield do(server.recv_into, buffer, 16, TRUNC), 32
    yield bytes(buffer), bytes(range(16))
    yield do(server.recv, 1, NOW), "EAGAIN"


@case("7")
def end_of_record(env: Env) -> Steps:
    """MSG_EOR is returned with the message that was sent with it, and only with that."""
    client, server = env.pair(SEQPACKET)
    for flags in (0, EOR, 0):
        client.send(b"m", flags)
    for flags in (0, EOR, 0):
        yield do(server.recvmsg, 10), (b"m", [], flags, None)


@case("7")
def end_of_record_of_a_long_message(env: Env) -> Steps:
    """Also if the message is sent in several packets, and if recv() truncates it."""
    client, server = env.pair(SEQPACKET)
    for _ in range(2):
        client.send(bytes(70_000), EOR)
        client.send(b"next")
        data, _, flags, _ = server.recvmsg(80_000)
        yield (len(data), flags), (70_000, EOR)
        yield do(server.recvmsg, 2), (b"ne", [], TRUNC, None)
    client.send(b"long", EOR)
    yield do(server.recvmsg, 2), (b"lo", [], TRUNC | EOR, None)


@case("7")
def empty_message(env: Env) -> Steps:
    """Sending an empty message sends nothing."""
    client, server = env.pair(SEQPACKET)
    yield do(client.send, b""), 0
    yield do(client.send, b"", EOR), 0
    yield do(client.send, b"next"), 4
    yield do(server.recv, 10), b"next"
    yield do(server.recv, 10, NOW), "EAGAIN"


@case("7")
def length_zero(env: Env) -> Steps:
    """Reading 0 bytes leaves the message in the queue."""
    client, server = env.pair(SEQPACKET)
    client.send(b"data")
    env.poll(server, "IN")
    yield do(env.libc.receive_into_nowhere, server, 0), 0
    yield do(server.recv, 10), b"data"


@case("7")
def gathered(env: Env) -> Steps:
    """The pieces of one sendmsg() are one message, and can be read into pieces."""
    client, server = env.pair(SEQPACKET)
    yield do(client.sendmsg, [b"one", b"two", b"three"]), 11
    one, two = bytearray(4), bytearray(20)
    yield do(server.recvmsg_into, [one, two]), (11, [], 0, None)
    yield bytes(one + two[:7]), b"onetwothree"


@case("7")
def peek(env: Env) -> Steps:
    """MSG_PEEK returns the first message and leaves it in the queue."""
    client, server = env.pair(SEQPACKET)
    client.send(b"0123456789")
    client.send(b"next")
    env.poll(server, "IN")
    yield do(server.recv, 100, PEEK), since(PEEKS, b"0123456789", before="ENOMEM")
    yield do(server.recv, 4, PEEK), since(PEEKS, b"0123", before="ENOMEM")
    yield do(server.recv, 100), b"0123456789"
    yield do(server.recv, 100), b"next"


@case("7")
def peek_flags(env: Env) -> Steps:
    """It returns the length of a message, and its MSG_EOR."""
    client, server = env.pair(SEQPACKET)
    client.send(b"0123456789", EOR)
    env.poll(server, "IN")
    yield do(server.recv_into, bytearray(4), 4, PEEK | TRUNC), since(PEEKS, 10, before="ENOMEM")
    expected: tuple[Any, ...] = (b"0123", [], TRUNC | EOR, None)
    yield do(server.recvmsg, 4, 0, PEEK), since(PEEKS, expected, before="ENOMEM")
    yield do(server.recvmsg, 10), (b"0123456789", [], EOR, None)


@case("7")
def wait_all(env: Env) -> Steps:
    """MSG_WAITALL has no effect."""
    client, server = env.pair(SEQPACKET)
    client.send(b"short")
    yield do(server.recv, 100, socket.MSG_WAITALL), b"short"
    client.send(b"short")
    env.poll(server, "IN")
    yield do(server.recv, BUFFER, socket.MSG_WAITALL), b"short"


@case("7")
def low_water(env: Env) -> Steps:
    """SO_RCVLOWAT does not make recv() wait."""
    client, server = env.pair(SEQPACKET)
    yield env.set_int(server, socket.SO_RCVLOWAT, 1000), OK
    client.send(b"short")
    yield do(server.recv, 2000), b"short"


@case("7")
def before_the_end(env: Env) -> Steps:
    """Messages that were sent before close() can be read after it."""
    client, server = env.pair(SEQPACKET)
    client.send(b"one")
    client.send(b"two", EOR)
    client.close()
    yield do(server.recvmsg, 10), (b"one", [], 0, None)
    yield do(server.recvmsg, 10), (b"two", [], EOR, None)
    yield do(server.recvmsg, 10), (b"", [], 0, None)


@case("7")
def no_signal(env: Env) -> Steps:
    """EPIPE comes without SIGPIPE, whichever side ended the direction."""
    client, server = env.pair(SEQPACKET)
    server.close()
    env.poll(client, "RDHUP")
    with env.signals(signal.SIGPIPE) as caught:
        yield do(client.send, b"x"), "EPIPE"
    yield len(caught), 0


@case("7")
def many_messages(env: Env) -> Steps:
    """Four hundred small messages can wait for the reader."""
    client, server = env.pair(SEQPACKET)
    yield {do(client.send, b"%d" % number, NOW | QUIET) for number in range(100, 500)}, {3}
    yield [server.recv(10) for _ in range(400)] == [b"%d" % n for n in range(100, 500)], True


@case("7")
def bad_buffer(env: Env) -> Steps:
    """If the buffer is invalid, the message is lost."""
    client, server = env.pair(SEQPACKET)
    client.send(b"lost")
    client.send(b"next")
    env.poll(server, "IN")
    yield do(env.libc.receive_into_nowhere, server, 100), since("6.7", "EFAULT", before="ENOMEM")
    yield do(server.recv, 100), b"next"


@case("7")
def file_calls(env: Env) -> Steps:
    """write() sends a message, and read() returns one."""
    import os

    client, server = env.pair(SEQPACKET)
    yield do(os.write, client.fileno(), b"one"), 3
    yield do(os.write, client.fileno(), b"two"), 3
    yield do(os.read, server.fileno(), 100), b"one"
    yield do(os.read, server.fileno(), 2), b"tw"


@case("7")
def full_then_whole(env: Env) -> Steps:
    """A message that waited for room arrives whole, and so does the next one."""
    client, server = env.pair(SEQPACKET)
    first, second = pattern(150_000, 1), pattern(150_000, 2)
    yield do(client.send, first), 150_000
    sending = env.background(lambda: client.send(second))
    yield do(server.recv, BUFFER) == first, True
    yield do(server.recv, BUFFER) == second, True
    yield sending(), 150_000

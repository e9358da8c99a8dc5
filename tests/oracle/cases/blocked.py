"""send() with a full buffer: how much it holds, waiting for room, and the end of the wait (section 6.1)."""

import socket
import struct
import time

from tests.oracle.case import OK, Steps, case, do, family, ours, since
from tests.oracle.env import BUFFER_MAX_SIZE, BUFFER_SIZE, SEQPACKET, STREAM, Env

QUIET = socket.MSG_NOSIGNAL
NOW = socket.MSG_DONTWAIT | QUIET
KIB = 1024
BUFFER = 256 * KIB
BACKPORTED = ("6.1.192", "6.12.76")
"""Stable kernels that also limit a sender by its own buffer."""
MUCH = 16 << 20


def amount(sent: int, size: int) -> object:
    """The number of sent bytes, compared with the size of a buffer."""
    if sent == size:
        return size
    return MORE if sent > size else LESS


MORE, LESS = "more", "less"


@family("6.1", {"stream": STREAM, "seqpacket": SEQPACKET})
def ends(env: Env, kind: int) -> Steps:
    """Without a reader a send becomes EAGAIN; reading makes room."""
    client, server = env.pair(kind)
    sent = env.fill(client)
    yield BUFFER <= sent < 32 << 20, True
    yield env.poll(client), "nothing"
    yield do(client.send, bytes(4 * KIB), NOW), "EAGAIN"
    got = 0
    while got < sent:
        got += len(server.recv(64 * KIB))
    yield got, sent
    yield env.poll(client, "OUT"), "OUT"
    yield do(client.send, bytes(4 * KIB), NOW), 4 * KIB


@case("6.1")
def holds_the_receivers_buffer(env: Env) -> Steps:
    """Without a reader, as many bytes as the receiver's buffer can be sent."""
    client, _ = env.pair()
    yield amount(env.fill(client), BUFFER), BUFFER, ours("D5", MORE)


@case("6.1")
def small_receive_buffer(env: Env) -> Steps:
    """Connections inherit the listener's buffer size."""
    listener = env.listener()
    env.set_size(listener, BUFFER_SIZE, 64 * KIB)
    client = env.connected_to(listener)
    env.accept(listener)
    yield amount(env.fill(client), 64 * KIB), 64 * KIB, ours("D5", MORE)


@case("12.6")
def small_send_buffer(env: Env) -> Steps:
    """The sender's own buffer size is a limit too."""
    client, _ = env.pair()
    env.set_size(client, BUFFER_SIZE, 64 * KIB)
    bounded = since("7.0", 64 * KIB, before=MORE, backports=BACKPORTED)
    yield amount(env.fill(client), 64 * KIB), bounded, ours("D5", MORE)


@case("10.1")
def large_receive_buffer(env: Env) -> Steps:
    """With larger buffers on both sides more can be sent."""
    listener, client = env.listener(), env.socket()
    for sock in (listener, client):
        env.set_size(sock, BUFFER_MAX_SIZE, 1 << 20)
        yield env.set_size(sock, BUFFER_SIZE, 1 << 20), OK
    client.connect(env.at(listener))
    env.accept(listener)
    yield amount(env.fill(client), 1 << 20), 1 << 20, ours("D5", MORE)


@case("10.1")
def buffer_enlarged_when_connected(env: Env) -> Steps:
    """A receiver that enlarges its buffer lets the sender go on."""
    client, server = env.pair()
    env.set_size(client, BUFFER_MAX_SIZE, 1 << 20)
    env.set_size(client, BUFFER_SIZE, 1 << 20)
    yield amount(env.fill(client), BUFFER), BUFFER, ours("D5", MORE)
    env.set_size(server, BUFFER_MAX_SIZE, 1 << 20)
    yield env.set_size(server, BUFFER_SIZE, BUFFER + 64 * KIB), OK
    yield env.poll(client, "OUT"), "OUT", ours("D5", "nothing")
    yield amount(env.fill(client), 60 * KIB), MORE


@case("6.1")
def partly(env: Env) -> Steps:
    """A non-blocking send of more than fits sends a part."""
    client, server = env.pair()
    sent = client.send(bytes(MUCH), NOW)
    yield 0 < sent < MUCH, True
    yield len(env.receive(server, sent)), sent


@case("6.1")
def nothing_is_always_sent(env: Env) -> Steps:
    """An empty send needs no room."""
    client, _ = env.pair()
    env.fill(client)
    yield do(client.send, b"", NOW), 0


@family("6.1", {"stream": STREAM, "seqpacket": SEQPACKET})
def send_timeout(env: Env, kind: int) -> Steps:
    """SO_SNDTIMEO ends the wait with EAGAIN."""
    client, _ = env.pair(kind)
    env.fill(client)
    yield env.set_time(client, socket.SOL_SOCKET, socket.SO_SNDTIMEO, 0.05), OK
    begun = time.monotonic()
    yield do(client.send, bytes(4 * KIB)), "EAGAIN"
    yield 0.04 < time.monotonic() - begun < 2, True


@case("6.1")
def send_timeout_after_a_part(env: Env) -> Steps:
    """If a part was sent, the timeout ends the call with its length."""
    client, _ = env.pair()
    env.set_time(client, socket.SOL_SOCKET, socket.SO_SNDTIMEO, 0.05)
    yield amount(client.send(bytes(MUCH)), BUFFER), BUFFER, ours("D5", MORE)


@case("6.1")
def waits_for_the_reader(env: Env) -> Steps:
    """A blocking send of much more than a buffer returns when everything is sent."""
    client, server = env.pair()
    total = 3 << 20
    sending = env.background(lambda: client.send(bytes(total)))
    yield len(env.receive(server, total)), total
    yield sending(), total


@case("6.1")
def ended_by_own_shutdown(env: Env) -> Steps:
    """shutdown() ends a blocked send."""
    client, _ = env.pair()
    env.fill(client)
    sending = env.background(lambda: client.send(bytes(4 * KIB), QUIET))
    env.until(lambda: env.waits(sending))
    client.shutdown(socket.SHUT_WR)
    yield sending(), "EPIPE"


@case("6.1")
def ended_by_the_peers_close(env: Env) -> Steps:
    """The peer's close ends a blocked send."""
    client, server = env.pair()
    env.fill(client)
    sending = env.background(lambda: client.send(bytes(4 * KIB), QUIET))
    server.close()
    yield sending(), "EPIPE"


@case("6.1")
def ended_after_a_part(env: Env) -> Steps:
    """If a part was sent before the peer's close, send returns its length."""
    client, server = env.pair()
    sending = env.background(lambda: client.send(bytes(MUCH), QUIET))
    env.arrived(server, 1)
    server.close()
    yield 0 < sending() < MUCH, True


@case("6.4")
def linger_does_not_wait_for_the_reader(env: Env) -> Steps:
    """close() with SO_LINGER waits for bytes to be sent, not for them to be read."""
    client, server = env.pair()
    yield do(client.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1)), OK
    client.send(b"unread")
    begun = time.monotonic()
    client.close()
    waited = time.monotonic() - begun > 0.5
    yield waited, since("6.16", False, before=True)
    yield env.receive(server, 10), b"unread"


@case("6.4")
def linger_zero_loses_nothing(env: Env) -> Steps:
    """SO_LINGER with 0 seconds does not abort the connection."""
    client, server = env.pair()
    yield do(client.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)), OK
    client.send(b"unread")
    client.close()
    yield env.receive(server, 10), b"unread"
    yield do(server.recv, 1), b""

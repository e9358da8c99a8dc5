"""recv() on a stream: the checks, flags, and what the peer's end looks like (sections 6.2 and 6.3)."""

import socket
import time

from tests.oracle.case import Steps, case, do, family, since
from tests.oracle.env import SEQPACKET, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
NOW = socket.MSG_DONTWAIT
PEEK = socket.MSG_PEEK
OOB = socket.MSG_OOB
ERRQUEUE = 0x2000
BUFFER = 256 * 1024


@family("6.2", KINDS)
def not_connected(env: Env, kind: int) -> Steps:
    """Without a connection it is ENOTCONN, whatever the flags."""
    for sock in (env.socket(kind), env.bound(kind), env.listener(kind)):
        for flags in (0, OOB, NOW, PEEK):
            yield do(sock.recv, 1, flags), "ENOTCONN"


@case("6.2")
def not_connected_length_zero(env: Env) -> Steps:
    """Also with length 0. Python's recv() makes no system call for length 0."""
    yield do(env.libc.receive_into_nowhere, env.socket(), 0), "ENOTCONN"


@family("6.2", KINDS)
def out_of_band(env: Env, kind: int) -> Steps:
    """MSG_OOB is not supported."""
    client, server = env.pair(kind)
    server.send(b"x")
    yield do(client.recv, 1, OOB), "EOPNOTSUPP"
    yield do(client.recv, 1), b"x"


@family("6.2", KINDS)
def empty(env: Env, kind: int) -> Steps:
    """Without data it is EAGAIN, with MSG_DONTWAIT or O_NONBLOCK."""
    client, _ = env.pair(kind)
    yield do(client.recv, 1, NOW), "EAGAIN"
    yield do(client.recv, 1, NOW | PEEK), "EAGAIN"
    client.setblocking(False)
    yield do(client.recv, 1), "EAGAIN"


@family("6.2", KINDS)
def timeout(env: Env, kind: int) -> Steps:
    """SO_RCVTIMEO limits the wait, which ends with EAGAIN."""
    client, _ = env.pair(kind)
    env.set_time(client, socket.SOL_SOCKET, socket.SO_RCVTIMEO, 0.05)
    begun = time.monotonic()
    yield do(client.recv, 1), "EAGAIN"
    yield 0.04 < time.monotonic() - begun < 2, True


@case("6.2")
def python_timeout(env: Env) -> Steps:
    """settimeout() limits it too."""
    client, _ = env.pair()
    client.settimeout(0.05)
    yield do(client.recv, 1), "TimeoutError"


@case("6.2")
def waits(env: Env) -> Steps:
    """A blocking recv() returns as soon as any data arrives."""
    client, server = env.pair()
    reading = env.background(lambda: client.recv(1000))
    server.send(b"x")
    yield reading(), b"x"


@family("6.2", KINDS)
def length_zero(env: Env, kind: int) -> Steps:
    """Receiving 0 bytes returns at once, and leaves the data in the queue."""
    client, server = env.pair(kind)
    yield do(client.recv, 0), b""
    server.send(b"data")
    env.poll(client, "IN")
    yield do(client.recv, 0), b""
    yield do(client.recv, 10), b"data"


@family("6.2", KINDS)
def after_own_shutdown(env: Env, kind: int) -> Steps:
    """After shutdown(SHUT_RD) it is the end of file, even if data is unread."""
    client, server = env.pair(kind)
    server.send(b"data")
    env.poll(client, "IN")
    client.shutdown(socket.SHUT_RD)
    yield do(client.recv, 10), b""
    yield do(client.recv, 10, NOW), b""


@family("6.3", KINDS)
def after_the_peer_stopped_writing(env: Env, kind: int) -> Steps:
    """The peer's SHUT_WR is an end of file after its data; sending still works."""
    client, server = env.pair(kind)
    server.send(b"data")
    server.shutdown(socket.SHUT_WR)
    yield do(client.recv, 10), b"data"
    yield do(client.recv, 10), b""
    yield do(client.recv, 10), b""
    yield do(client.send, b"back"), 4
    yield do(server.recv, 10), b"back"


@family("6.3", KINDS)
def after_the_peer_closed(env: Env, kind: int) -> Steps:
    """The peer's close is an end of file after its data, never ECONNRESET."""
    client, server = env.pair(kind)
    server.send(b"data")
    server.close()
    yield do(client.recv, 10), b"data"
    yield do(client.recv, 10), b""
    yield env.get_int(client, socket.SO_ERROR), 0


@case("6.3")
def after_the_peer_closed_without_reading(env: Env) -> Steps:
    """The peer's close with unread data is no error either."""
    client, server = env.pair()
    client.send(b"never read")
    server.send(b"data")
    env.arrived(server, 10)
    server.close()
    yield do(client.recv, 10), b"data"
    yield do(client.recv, 10), b""
    yield env.get_int(client, socket.SO_ERROR), 0


@case("6.3")
def after_the_peer_stopped_reading(env: Env) -> Steps:
    """The peer's SHUT_RD does not affect receiving."""
    client, server = env.pair()
    server.shutdown(socket.SHUT_RD)
    server.send(b"data")
    yield do(client.recv, 10), b"data"
    yield do(client.recv, 10, NOW), "EAGAIN"


@case("6.3")
def waiting_when_the_peer_closes(env: Env) -> Steps:
    """A blocked recv() ends with the connection."""
    client, server = env.pair()
    reading = env.background(lambda: client.recv(10))
    server.close()
    yield reading(), b""


@case("9.1")
def waiting_when_shut_down(env: Env) -> Steps:
    """A blocked recv() ends with this side's own shutdown."""
    client, _ = env.pair()
    reading = env.background(lambda: client.recv(10))
    env.until(lambda: env.waits(reading))
    client.shutdown(socket.SHUT_RD)
    yield reading(), b""


@case("6.2")
def source_address(env: Env) -> Steps:
    """There is no source address on a connection."""
    client, server = env.pair()
    server.send(b"data")
    yield do(client.recvfrom, 10), (b"data", None)
    server.send(b"data")
    yield do(client.recvmsg, 10), (b"data", [], 0, None)


@case("6.2")
def source_address_length(env: Env) -> Steps:
    """The length of the source address is 0."""
    client, server = env.pair()
    server.send(b"data")
    yield env.libc.receive_from(client, 10), (b"data", 0)


@case("6.2")
def peek(env: Env) -> Steps:
    """MSG_PEEK leaves the data in the queue."""
    client, server = env.pair()
    server.send(b"0123456789")
    yield env.arrived(client, 10), True
    yield do(client.recv, 4, PEEK), b"0123"
    yield do(client.recv, 100, PEEK), b"0123456789"
    yield do(client.recv, 100), b"0123456789"
    yield do(client.recv, 1, PEEK | NOW), "EAGAIN"


@case("6.2")
def peek_after_a_part(env: Env) -> Steps:
    """A peek begins where the last read ended."""
    client, server = env.pair()
    server.send(b"0123456789")
    env.arrived(client, 10)
    yield do(client.recv, 1), b"0"
    yield do(client.recv, 100, PEEK), b"123456789"
    yield do(client.recv, 3), b"123"
    yield do(client.recv, 100, PEEK), b"456789"


@case("6.2")
def peek_over_two_sends(env: Env) -> Steps:
    """A peek returns data of several sends."""
    client, server = env.pair()
    server.send(b"one")
    server.send(bytes(500))
    yield env.arrived(client, 503), True


@case("6.2")
def peek_waits(env: Env) -> Steps:
    """A peek waits for data like any other recv()."""
    client, server = env.pair()
    reading = env.background(lambda: client.recv(10, PEEK))
    server.send(b"data")
    yield reading(), b"data"


@case("6.2")
def peek_at_the_end(env: Env) -> Steps:
    """The end of file can be peeked at."""
    client, server = env.pair()
    server.close()
    yield do(client.recv, 10, PEEK), b""


@case("6.2")
def wait_all(env: Env) -> Steps:
    """MSG_WAITALL waits until all bytes have arrived."""
    client, server = env.pair()
    reading = env.background(lambda: client.recv(9, socket.MSG_WAITALL))
    for piece in (b"one", b"two", b"three"):
        server.send(piece)
    yield reading(), b"onetwothr"
    yield do(client.recv, 10), b"ee"


@case("6.2")
def wait_all_until_the_end(env: Env) -> Steps:
    """Or until the end of the data."""
    client, server = env.pair()
    server.send(b"short")
    server.shutdown(socket.SHUT_WR)
    yield do(client.recv, 100, socket.MSG_WAITALL), b"short"


@case("6.2")
def wait_all_without_waiting(env: Env) -> Steps:
    """With MSG_DONTWAIT it returns at once."""
    client, server = env.pair()
    server.send(b"short")
    env.arrived(client, 5)
    yield do(client.recv, 100, socket.MSG_WAITALL | NOW), b"short"


@case("6.2")
def wait_all_and_peek(env: Env) -> Steps:
    """With MSG_PEEK it does not wait for all bytes."""
    client, server = env.pair()
    server.send(b"short")
    env.arrived(client, 5)
    yield do(client.recv, 100, socket.MSG_WAITALL | PEEK), b"short"


@case("6.2")
def wait_all_with_timeout(env: Env) -> Steps:
    """SO_RCVTIMEO ends it with the present data."""
    client, server = env.pair()
    env.set_time(client, socket.SOL_SOCKET, socket.SO_RCVTIMEO, 0.05)
    server.send(b"short")
    yield do(client.recv, 100, socket.MSG_WAITALL), b"short"


@family("6.2", {"one less": (-1, "waits"), "just": (0, "ENOMEM"), "more": (1, "ENOMEM")})
def wait_all_for_a_whole_buffer(env: Env, more: int, result: str) -> Steps:
    """Waiting for as many bytes as the buffer holds could never end: ENOMEM."""
    client, server = env.pair()
    if result == "waits":
        server.send(bytes(BUFFER))
        yield len(client.recv(BUFFER + more, socket.MSG_WAITALL)), BUFFER + more
    else:
        yield do(client.recv, BUFFER + more, socket.MSG_WAITALL), result


@case("6.2")
def truncate_flag(env: Env) -> Steps:
    """MSG_TRUNC does nothing on a stream: data is copied, and the rest is kept."""
    client, server = env.pair()
    server.send(b"0123456789")
    env.arrived(client, 10)
    yield do(client.recvmsg, 4, 0, socket.MSG_TRUNC), (b"0123", [], 0, None)
    yield do(client.recv, 10), b"456789"


@family("6.2", KINDS)
def error_queue(env: Env, kind: int) -> Steps:
    """MSG_ERRQUEUE never waits, and the queue is empty."""
    client, _ = env.pair(kind)
    yield do(client.recv, 10, ERRQUEUE | NOW), "EAGAIN"
    yield do(client.recv, 10, ERRQUEUE), since("6.7", "EAGAIN", before="EAGAIN")


@case("6.2")
def bad_buffer(env: Env) -> Steps:
    """An invalid buffer is EFAULT; a stream keeps the data."""
    client, server = env.pair()
    server.send(b"data")
    env.poll(client, "IN")
    yield do(env.libc.receive_into_nowhere, client, 100), since("6.7", "EFAULT", before="ENOMEM")
    yield do(client.recv, 100, NOW), b"data"


@case("6.2")
def into_buffers(env: Env) -> Steps:
    """recv_into(), recvfrom_into() and recvmsg_into() fill the given buffers."""
    client, server = env.pair()
    one, two = bytearray(3), bytearray(4)
    server.send(b"0123456789")
    env.arrived(client, 10)
    yield do(client.recv_into, one), 3
    yield do(client.recvmsg_into, [one, two]), (7, [], 0, None)
    yield bytes(one + two), b"3456789"


@case("6.2")
def ready_bytes(env: Env) -> Steps:
    """After poll() reports data, recv() returns it."""
    client, server = env.pair()
    client.setblocking(False)
    server.send(b"x")
    yield env.poll(client, "IN"), "IN|OUT"
    yield do(client.recv, 1), b"x"
    yield env.poll(client), "OUT"

"""Bulk data: order, sends and reads of different sizes, and SO_RCVLOWAT (sections 6.2 and 6.4)."""

import functools
import hashlib
import socket

from tests.oracle.case import OK, Steps, case, do, family
from tests.oracle.env import BUFFER_SIZE, OWN, SEQPACKET, STREAM, Env

NOW = socket.MSG_DONTWAIT
LOWAT = socket.SO_RCVLOWAT
BUFFER = 256 * 1024


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes in which a wrong order or a gap is visible."""
    return hashlib.shake_128(seed.to_bytes(4, "little")).digest(length)


@family("6.2", {"1 byte": 1, "64 KiB and 1": 65537, "a buffer and 1": BUFFER + 1, "1 MiB": 1 << 20})
def whole(env: Env, length: int) -> Steps:
    """All bytes arrive in order, in both directions."""
    data = pattern(length)
    client, server = env.pair()
    for sender, receiver in ((client, server), (server, client)):
        sending = env.background(functools.partial(sender.sendall, data))
        yield env.receive(receiver, length) == data, True
        yield sending(), OK


@case("6.2")
def both_ways_at_once(env: Env) -> Steps:
    """The two directions do not wait for each other."""
    client, server = env.pair()
    there, back = pattern(600_000, 2), pattern(600_000, 3)
    results = [
        env.background(lambda: client.sendall(there)),
        env.background(lambda: server.sendall(back)),
        env.background(lambda: env.receive(server, len(there)) == there),
    ]
    yield env.receive(client, len(back)) == back, True
    yield [result() for result in results], [OK, OK, True]


@case("6.2")
def own_cid(env: Env) -> Steps:
    """A connection to the machine's own CID carries data as one to CID 1 does."""
    listener, client = env.listener(), env.socket()
    client.connect(env.at(listener, OWN))
    data = pattern(100_000)
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    yield env.receive(env.accept(listener), 200_000) == data, True


@case("6.2")
def small_sends(env: Env) -> Steps:
    """Many small sends are one stream."""
    client, server = env.pair()
    data = pattern(3000)
    for at in range(0, len(data), 3):
        client.send(data[at : at + 3])
    yield env.receive(server, 3000) == data, True


@case("6.2")
def small_reads(env: Env) -> Steps:
    """One send can be read in many pieces."""
    client, server = env.pair()
    data = pattern(2000)
    client.send(data)
    env.arrived(server, 2000)
    yield b"".join(server.recv(7) for _ in range(286)) == data, True


@case("6.2")
def across_sends(env: Env) -> Steps:
    """A read returns data of several sends, and a part of one."""
    client, server = env.pair()
    client.send(b"HELLO")
    client.send(b"WORLD")
    env.arrived(server, 10)
    yield do(server.recv, 2), b"HE"
    yield do(server.recv, 8), b"LLOWORLD"
    yield do(server.recv, 1, NOW), "EAGAIN"


@case("6.2")
def data_before_the_end(env: Env) -> Steps:
    """close() after much data loses none of it."""
    client, server = env.pair()
    data = pattern(200_000)
    client.sendall(data)
    client.close()
    yield env.receive(server, 300_000) == data, True


@case("2")
def makefile(env: Env) -> Steps:
    """A Python file object reads lines and the end of the data."""
    client, server = env.pair()
    with client.makefile("wb") as out:
        out.write(b"one\ntwo\n")
    client.shutdown(socket.SHUT_WR)
    with server.makefile("rb") as lines:
        yield list(lines), [b"one\n", b"two\n"]


@family("6.4", {"stream": STREAM, "seqpacket": SEQPACKET})
def low_water_default(env: Env, kind: int) -> Steps:
    """SO_RCVLOWAT is 1, and 0 means 1."""
    sock = env.socket(kind)
    yield env.get_int(sock, LOWAT), 1
    yield env.set_int(sock, LOWAT, 0), OK
    yield env.get_int(sock, LOWAT), 1
    yield env.set_int(sock, LOWAT, 77), OK
    yield env.get_int(sock, LOWAT), 77


@family("6.4", {"buffer size": (BUFFER, OK), "more": (BUFFER + 1, "EINVAL"), "-1": (-1, "EINVAL")})
def low_water_range(env: Env, value: int, result: str) -> Steps:
    """On a stream it may be as large as the buffer."""
    sock = env.socket()
    yield env.set_int(sock, LOWAT, value), result
    yield env.get_int(sock, LOWAT), value if result == OK else 1


@case("6.4")
def low_water_range_follows_the_buffer(env: Env) -> Steps:
    """The present size of the buffer counts."""
    sock = env.socket()
    env.set_size(sock, BUFFER_SIZE, 1000)
    yield env.set_int(sock, LOWAT, 1001), "EINVAL"
    yield env.set_int(sock, LOWAT, 1000), OK


@family("6.4", {"larger than the buffer": (BUFFER + 1, BUFFER + 1), "-1": (-1, 2**31 - 1)})
def low_water_range_of_seqpacket(env: Env, value: int, stored: int) -> Steps:
    """SEQPACKET accepts any value."""
    sock = env.socket(SEQPACKET)
    yield env.set_int(sock, LOWAT, value), OK
    yield env.get_int(sock, LOWAT), stored


@case("6.4")
def low_water_and_recv(env: Env) -> Steps:
    """recv() waits for this many bytes, or for as many as its argument holds."""
    client, server = env.pair()
    yield env.set_int(server, LOWAT, 6), OK
    reading = env.background(lambda: server.recv(100))
    client.send(b"123")
    client.send(b"456")
    yield reading(), b"123456"
    client.send(b"78")
    yield do(server.recv, 2), b"78"


@case("6.4")
def low_water_and_the_end(env: Env) -> Steps:
    """At the end of the data fewer bytes are enough."""
    client, server = env.pair()
    yield env.set_int(server, LOWAT, 100), OK
    client.send(b"123")
    client.shutdown(socket.SHUT_WR)
    yield do(server.recv, 200), b"123"


@case("6.4")
def low_water_without_waiting(env: Env) -> Steps:
    """A non-blocking recv() returns the present data."""
    client, server = env.pair()
    client.send(b"123")
    env.arrived(server, 3)
    yield env.set_int(server, LOWAT, 100), OK
    yield do(server.recv, 200, NOW), b"123"


@case("6.4")
def low_water_of_a_whole_buffer(env: Env) -> Steps:
    """A low water mark that the buffer cannot reach makes recv() ENOMEM."""
    _, server = env.pair()
    yield env.set_int(server, LOWAT, BUFFER), OK
    yield do(server.recv, BUFFER), "ENOMEM"
    yield do(server.recv, BUFFER - 1, NOW), "EAGAIN"

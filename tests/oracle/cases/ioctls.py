"""ioctl() on sockets: how much can be read, how much is under way (section 10.3)."""

import fcntl
import os
import struct

from tests.oracle.case import OK, Steps, case, do, family, ours, since
from tests.oracle.env import SEQPACKET, SIOCINQ, SIOCOUTQ, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
FIONBIO = 0x5421
SIOCATMARK = 0x8905


NO_IOCTL = since("6.11", "ENOTTY", before="EOPNOTSUPP")
"""For an ioctl that there is not; before 6.11 there was none at all."""


def unread(value: object) -> object:
    """What SIOCINQ gives; Linux before 6.17 does not have it for these sockets."""
    return since("6.17", value, before=NO_IOCTL)


def unsent(value: object) -> object:
    """What SIOCOUTQ gives; Linux before 6.11 does not have it for these sockets."""
    return since("6.11", value, before="EOPNOTSUPP")


@family("10.3", KINDS)
def not_connected(env: Env, kind: int) -> Steps:
    """Without a connection there is nothing to ask about."""
    for sock in (env.socket(kind), env.bound(kind), env.listener(kind)):
        yield env.ioctl(sock, SIOCINQ), unread("EOPNOTSUPP"), ours("D4c", api=0)
        yield env.ioctl(sock, SIOCOUTQ), unsent("EOPNOTSUPP"), ours("D4c", api=0)


@case("10.3")
def unread_stream(env: Env) -> Steps:
    """SIOCINQ is how many bytes can be read."""
    client, server = env.pair()
    yield env.ioctl(server, SIOCINQ), unread(0)
    client.send(b"12345")
    client.send(b"678")
    env.arrived(server, 8)
    yield env.ioctl(server, SIOCINQ), unread(8)
    server.recv(2)
    yield env.ioctl(server, SIOCINQ), unread(6)
    server.recv(10)
    yield env.ioctl(server, SIOCINQ), unread(0)


@case("10.3")
def unread_messages(env: Env) -> Steps:
    """On SEQPACKET it is the bytes of all messages."""
    client, server = env.pair(SEQPACKET)
    client.send(b"12345")
    client.send(b"678")
    env.until(lambda: env.ioctl(server, SIOCINQ) in (8, "ENOTTY", "EOPNOTSUPP"))
    yield env.ioctl(server, SIOCINQ), unread(8)
    server.recv(2)
    yield env.ioctl(server, SIOCINQ), unread(3)


@case("10.3")
def unread_after_the_end(env: Env) -> Steps:
    """It goes on after the peer has closed."""
    client, server = env.pair()
    client.send(b"12345")
    client.close()
    env.poll(server, "RDHUP")
    yield env.ioctl(server, SIOCINQ), unread(5)


@family("10.3", KINDS)
def unsent_bytes(env: Env, kind: int) -> Steps:
    """SIOCOUTQ is what has not reached the other end; that becomes 0 without anybody reading."""
    client, server = env.pair(kind)
    yield env.ioctl(client, SIOCOUTQ), unsent(0)
    client.send(bytes(1000))
    yield env.until(lambda: env.ioctl(client, SIOCOUTQ) not in range(1, 1001)), True
    yield len(server.recv(2000)), 1000
    yield env.ioctl(client, SIOCOUTQ), unsent(0)


@family("10.3", {"none": 0x1234, "of the device": 0x7B9, "of a tty": 0x5401})
def unknown(env: Env, request: int) -> Steps:
    """Others are ENOTTY."""
    client, _ = env.pair()
    for sock in (env.socket(), client):
        yield do(fcntl.ioctl, sock, request, bytes(64)), NO_IOCTL


@case("10.3")
def urgent_mark(env: Env) -> Steps:
    """So is the one for urgent data."""
    client, _ = env.pair()
    yield do(fcntl.ioctl, client, SIOCATMARK, bytes(4)), NO_IOCTL, ours("D4c", bytes(4))


@case("10.3")
def nonblocking(env: Env) -> Steps:
    """FIONBIO is for all descriptors."""
    client, _ = env.pair()
    yield do(fcntl.ioctl, client, FIONBIO, struct.pack("i", 1)) == struct.pack("i", 1), True
    yield bool(fcntl.fcntl(client, fcntl.F_GETFL) & os.O_NONBLOCK), True
    yield do(client.recv, 1, 0x40), "EAGAIN"


@case("10.3")
def after_shutdown(env: Env) -> Steps:
    """They go on after shutdown()."""
    client, server = env.pair()
    client.send(b"123")
    env.arrived(server, 3)
    yield do(server.shutdown, 2), OK
    yield env.ioctl(server, SIOCINQ), unread(3)
    yield env.ioctl(server, SIOCOUTQ), unsent(0)

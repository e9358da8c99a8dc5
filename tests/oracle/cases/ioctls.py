"""ioctl() on sockets: how many bytes can be read, and how many are in flight (section 10.3)."""

import fcntl
import os
import struct

from tests.oracle.case import OK, Steps, case, do, family, ours, since
from tests.oracle.env import SEQPACKET, SIOCINQ, SIOCOUTQ, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
FIONBIO = 0x5421
SIOCATMARK = 0x8905


NO_IOCTL = since("6.11", "ENOTTY", before="EOPNOTSUPP")
"""The error of an unknown ioctl; kernels before 6.11 have no ioctls for these sockets."""


def unread(value: object) -> object:
    """The result of SIOCINQ, which Linux before 6.17 does not have for these sockets."""
    return since("6.17", value, before=NO_IOCTL)


def unsent(value: object) -> object:
    """The result of SIOCOUTQ, which Linux before 6.11 does not have for these sockets."""
    return since("6.11", value, before="EOPNOTSUPP")


@family("10.3", KINDS)
def not_connected(env: Env, kind: int) -> Steps:
    """Without a connection they are an error."""
    for sock in (env.socket(kind), env.bound(kind), env.listener(kind)):
        yield env.ioctl(sock, SIOCINQ), unread("EOPNOTSUPP"), ours("D4c", api=0)
        yield env.ioctl(sock, SIOCOUTQ), unsent("EOPNOTSUPP"), ours("D4c", api=0)


@case("10.3")
def unread_stream(env: Env) -> Steps:
    """SIOCINQ is the number of bytes that can be read."""
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
    """On SEQPACKET it is the number of bytes of all messages."""
    client, server = env.pair(SEQPACKET)
    client.send(b"12345")
    client.send(b"678")
    env.until(lambda: env.ioctl(server, SIOCINQ) in (8, "ENOTTY", "EOPNOTSUPP"))
    yield env.ioctl(server, SIOCINQ), unread(8)
    server.recv(2)
    yield env.ioctl(server, SIOCINQ), unread(3)


@case("10.3")
def unread_after_the_end(env: Env) -> Steps:
    """It works after the peer has closed."""
    client, server = env.pair()
    client.send(b"12345")
    client.close()
    env.poll(server, "RDHUP")
    yield env.ioctl(server, SIOCINQ), unread(5)


@family("10.3", KINDS)
def unsent_bytes(env: Env, kind: int) -> Steps:
    """SIOCOUTQ is the number of bytes that have not reached the other end; it becomes 0 although no program reads."""
    client, server = env.pair(kind)
    yield env.ioctl(client, SIOCOUTQ), unsent(0)
    client.send(bytes(1000))
    yield env.until(lambda: env.ioctl(client, SIOCOUTQ) not in range(1, 1001)), True
    yield len(server.recv(2000)), 1000
    yield env.ioctl(client, SIOCOUTQ), unsent(0)


@family("10.3", {"none": 0x1234, "of the device": 0x7B9, "of a tty": 0x5401})
def unknown(env: Env, request: int) -> Steps:
    """Other ioctls are ENOTTY."""
    client, _ = env.pair()
    for sock in (env.socket(), client):
        yield do(fcntl.ioctl, sock, request, bytes(64)), NO_IOCTL


@case("10.3")
def urgent_mark(env: Env) -> Steps:
    """SIOCATMARK is ENOTTY too."""
    client, _ = env.pair()
    yield do(fcntl.ioctl, client, SIOCATMARK, bytes(4)), NO_IOCTL, ours("D4c", bytes(4))


@case("10.3")
def nonblocking(env: Env) -> Steps:
    """FIONBIO works, as for all descriptors."""
    client, _ = env.pair()
    yield do(fcntl.ioctl, client, FIONBIO, struct.pack("i", 1)) == struct.pack("i", 1), True
    yield bool(fcntl.fcntl(client, fcntl.F_GETFL) & os.O_NONBLOCK), True
    yield do(client.recv, 1, 0x40), "EAGAIN"


@case("10.3")
def after_shutdown(env: Env) -> Steps:
    """They work after shutdown()."""
    client, server = env.pair()
    client.send(b"123")
    env.arrived(server, 3)
    yield do(server.shutdown, 2), OK
    yield env.ioctl(server, SIOCINQ), unread(3)
    yield env.ioctl(server, SIOCOUTQ), unsent(0)

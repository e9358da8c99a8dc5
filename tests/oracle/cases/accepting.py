"""accept(): when it waits, what it returns, and what a new connection inherits (section 4)."""

import fcntl
import os
import socket
import struct
import time

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import (
    AF_VSOCK,
    ANY,
    BUFFER_MAX_SIZE,
    BUFFER_MIN_SIZE,
    BUFFER_SIZE,
    CONNECT_TIMEOUT,
    LOCAL,
    OWN,
    SEQPACKET,
    STREAM,
    Env,
)

SOL = socket.SOL_SOCKET
KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}


@case("4")
def not_listening(env: Env) -> Steps:
    """accept() needs a listener."""
    client, server = env.pair()
    for sock in (env.socket(), env.bound(), client, server):
        yield do(sock.accept), "EINVAL"


@family("4", KINDS)
def nothing_there(env: Env, kind: int) -> Steps:
    """A non-blocking accept() is EAGAIN while no connection waits."""
    listener = env.listener(kind)
    listener.setblocking(False)
    yield do(listener.accept), "EAGAIN"
    client = env.connected_to(listener, kind)
    env.poll(listener, "IN")
    yield do(env.accept(listener).getpeername), (LOCAL, client.getsockname()[1])
    yield do(listener.accept), "EAGAIN"


@case("4")
def receive_timeout(env: Env) -> Steps:
    """SO_RCVTIMEO limits the wait, which ends with EAGAIN."""
    listener = env.listener()
    yield env.set_time(listener, SOL, socket.SO_RCVTIMEO, 0.05), OK
    begun = time.monotonic()
    yield do(listener.accept), "EAGAIN"
    yield 0.04 < time.monotonic() - begun < 2, True


@case("4")
def python_timeout(env: Env) -> Steps:
    """settimeout() limits the wait too."""
    listener = env.listener()
    listener.settimeout(0.05)
    yield do(listener.accept), "TimeoutError"


@case("4")
def waits(env: Env) -> Steps:
    """A blocking accept() returns with the next connection."""
    listener = env.listener()
    peer = env.background(lambda: tuple(env.accept(listener).getpeername()))
    client = env.connected_to(listener)
    yield peer(), (LOCAL, client.getsockname()[1])


@case("4")
def in_order(env: Env) -> Steps:
    """Connections are accepted in the order in which they arrived."""
    listener = env.listener()
    clients = [env.connected_to(listener) for _ in range(4)]
    for client in clients:
        yield tuple(listener.accept()[1]), (LOCAL, client.getsockname()[1])


@family("4", {"local": LOCAL, "own": OWN})
def addresses(env: Env, cid: int) -> Steps:
    """An accepted socket is bound to the CID that was connected to."""
    listener = env.listener()
    client = env.socket()
    client.connect(env.at(listener, cid))
    server = env.accept(listener)
    yield do(server.getsockname), env.at(listener, cid)
    yield do(listener.getsockname), env.at(listener, ANY)


@family("4", KINDS)
def connected_before_accept(env: Env, kind: int) -> Steps:
    """A client can send before it is accepted."""
    listener = env.listener(kind)
    client = env.connected_to(listener, kind)
    yield do(client.send, b"early"), 5
    yield do(client.getpeername), env.at(listener)
    yield do(env.accept(listener).recv, 100), b"early"


@case("4")
def closed_before_accept(env: Env) -> Steps:
    """A connection that the client has closed is still accepted, with its data."""
    listener = env.listener()
    client = env.connected_to(listener)
    address = client.getsockname()
    client.send(b"last words")
    client.close()
    server = env.accept(listener)
    yield do(server.getpeername), (LOCAL, address[1])
    yield env.receive(server, 100), b"last words"
    yield do(server.recv, 1), b""


@case("4")
def closed_before_accept_without_data(env: Env) -> Steps:
    """The same without data: an end of file, then a broken pipe."""
    listener = env.listener()
    env.connected_to(listener).close()
    server = env.accept(listener)
    yield env.poll(server, "RDHUP|IN"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(server.recv, 1), b""
    yield do(server.send, b"x", socket.MSG_NOSIGNAL), "EPIPE"


@case("4")
def listener_closed(env: Env) -> Steps:
    """Closing a listener ends the connections that were not accepted."""
    listener = env.listener()
    clients = [env.connected_to(listener) for _ in range(2)]
    listener.close()
    for client in clients:
        yield env.poll(client, "RDHUP|IN"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
        yield do(client.recv, 1), b""
        yield do(client.send, b"x", socket.MSG_NOSIGNAL), "EPIPE"


@case("4")
def listener_closed_after_accept(env: Env) -> Steps:
    """Accepted connections go on."""
    listener = env.listener()
    client = env.connected_to(listener)
    server = env.accept(listener)
    listener.close()
    yield do(client.send, b"on"), 2
    yield do(server.recv, 10), b"on"
    yield do(env.socket().connect, server.getsockname()), "ECONNRESET"


@case("4")
def inherits_no_mode(env: Env) -> Steps:
    """O_NONBLOCK is not inherited."""
    listener = env.listener()
    listener.setblocking(False)
    env.connected_to(listener)
    env.poll(listener, "IN")
    server = env.accept(listener)
    yield bool(fcntl.fcntl(server, fcntl.F_GETFL) & os.O_NONBLOCK), False


@case("4")
def inherits_no_times(env: Env) -> Steps:
    """Timeouts, SO_RCVLOWAT and SO_LINGER are not inherited."""
    listener = env.listener()
    env.set_time(listener, SOL, socket.SO_RCVTIMEO, 5)
    env.set_time(listener, SOL, socket.SO_SNDTIMEO, 5)
    env.set_int(listener, socket.SO_RCVLOWAT, 10)
    do(listener.setsockopt, SOL, socket.SO_LINGER, struct.pack("ii", 1, 3))
    env.connected_to(listener)
    server = env.accept(listener)
    yield env.get_time(server, SOL, socket.SO_RCVTIMEO), 0.0
    yield env.get_time(server, SOL, socket.SO_SNDTIMEO), 0.0
    yield env.get_int(server, socket.SO_RCVLOWAT), 1
    yield do(server.getsockopt, SOL, socket.SO_LINGER, 8), struct.pack("ii", 0, 0)


@case("4")
def inherits_sizes(env: Env) -> Steps:
    """Buffer sizes are those of the listener when the connection arrived."""
    listener = env.listener()
    env.set_size(listener, BUFFER_MIN_SIZE, 500)
    env.set_size(listener, BUFFER_MAX_SIZE, 90_000)
    env.set_size(listener, BUFFER_SIZE, 70_000)
    env.connected_to(listener)
    env.set_size(listener, BUFFER_SIZE, 80_000)
    server = env.accept(listener)
    yield env.get_size(server, BUFFER_SIZE), 70_000
    yield env.get_size(server, BUFFER_MIN_SIZE), 500
    yield env.get_size(server, BUFFER_MAX_SIZE), 90_000


@case("4")
def inherits_connect_timeout(env: Env) -> Steps:
    """The connect timeout is inherited with its value when the connection arrived."""
    listener = env.listener()
    env.set_time(listener, AF_VSOCK, CONNECT_TIMEOUT, 7)
    env.connected_to(listener)
    env.set_time(listener, AF_VSOCK, CONNECT_TIMEOUT, 9)
    yield env.get_time(env.accept(listener), AF_VSOCK, CONNECT_TIMEOUT), 7.0


@case("4", api="accept4 is below Python's sockets")
def accept4_flags(env: Env) -> Steps:
    """accept4() sets the given flags on the new descriptor."""
    listener = env.listener()
    for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC):
        env.connected_to(listener)
        fd = env.libc.accept4(listener, flags)
        yield (
            (
                fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK,
                fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC,
            ),
            (
                os.O_NONBLOCK if flags == socket.SOCK_NONBLOCK else 0,
                fcntl.FD_CLOEXEC if flags == socket.SOCK_CLOEXEC else 0,
            ),
        )
        os.close(fd)
    yield do(env.libc.accept4, listener, 1), "EINVAL"


@case("4")
def accepted_is_no_listener(env: Env) -> Steps:
    """An accepted socket has SO_ACCEPTCONN off."""
    _, server = env.pair()
    yield env.get_int(server, socket.SO_ACCEPTCONN), 0
    yield env.get_int(server, socket.SO_TYPE), STREAM
    yield env.get_int(server, socket.SO_ERROR), 0


@case("4")
def many_connections(env: Env) -> Steps:
    """Data of several connections of one listener does not mix."""
    listener = env.listener(STREAM, 40)
    clients = [env.connected_to(listener) for _ in range(30)]
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
    servers = [env.accept(listener) for _ in clients]
    yield [do(server.recv, 10) for server in servers], [b"%d" % n for n in range(30)]
    for server, client in zip(reversed(servers), reversed(clients), strict=True):
        server.send(b"%d" % client.getsockname()[1])
    yield [int(do(client.recv, 12)) for client in clients], [c.getsockname()[1] for c in clients]


@case("4")
def signal_while_waiting(env: Env) -> Steps:
    """With SO_RCVTIMEO a signal ends the wait with EINTR."""
    listener = env.listener()
    env.set_time(listener, SOL, socket.SO_RCVTIMEO, 5)
    yield env.interrupted(lambda: env.libc.name_of("accept", listener, 16)), "EINTR"

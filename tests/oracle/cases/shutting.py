"""shutdown(): when it is allowed, and its effects (section 9.1)."""

import socket

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import LOCAL, SEQPACKET, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
RD, WR, RDWR = socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR
HOWS = {"reading": RD, "writing": WR, "both": RDWR}
QUIET = socket.MSG_NOSIGNAL
NOW = socket.MSG_DONTWAIT


@family("9.1", HOWS)
def not_connected(env: Env, how: int) -> Steps:
    """Without a connection it is ENOTCONN."""
    for sock in (env.socket(), env.bound(), env.socket(SEQPACKET)):
        yield do(sock.shutdown, how), "ENOTCONN"


@family("9.1", {"3": 3, "-1": -1, "largest": 2**31 - 1})
def bad_how(env: Env, how: int) -> Steps:
    """A value other than the three is EINVAL, on any socket."""
    client, _ = env.pair()
    for sock in (client, env.socket(), env.listener()):
        yield do(sock.shutdown, how), "EINVAL"
    yield do(client.getpeername)[0], LOCAL


@case("9.1")
def after_a_refused_connect(env: Env) -> Steps:
    """After a refused connect it is ENOTCONN."""
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield do(sock.shutdown, RDWR), "ENOTCONN"


@family("9.1", HOWS)
def names_afterwards(env: Env, how: int) -> Steps:
    """getpeername() is ENOTCONN from then on, getsockname() is as before."""
    client, server = env.pair()
    for sock in (client, server):
        ours = sock.getsockname()
        yield do(sock.shutdown, how), OK
        yield do(sock.getpeername), "ENOTCONN"
        yield do(sock.getsockname), ours


@family("9.1", HOWS)
def repeated(env: Env, how: int) -> Steps:
    """It can be repeated, and the other direction added."""
    client, _ = env.pair()
    for again in (how, how, RD, WR, RDWR):
        yield do(client.shutdown, again), OK


@family("9.1", KINDS)
def half_close(env: Env, kind: int) -> Steps:
    """A half-closed connection goes on in the other direction, for long."""
    client, server = env.pair(kind)
    client.send(b"question")
    yield do(client.shutdown, WR), OK
    yield do(server.recv, 100), b"question"
    yield do(server.recv, 100), b""
    for word in (b"a", b"long", b"answer"):
        yield do(server.send, word), len(word)
        yield do(client.recv, 100), word
    server.close()
    yield do(client.recv, 100), b""


@family("9.1", KINDS)
def half_close_both_sides(env: Env, kind: int) -> Steps:
    """Both sides may half-close; then both read the end of the data."""
    client, server = env.pair(kind)
    for sock in (client, server):
        yield do(sock.shutdown, WR), OK
    for sock in (client, server):
        yield do(sock.recv, 1), b""
        yield do(sock.send, b"x", QUIET), "EPIPE"


@case("9.1")
def one_after_the_other(env: Env) -> Steps:
    """Shutting down each direction has the effect of SHUT_RDWR."""
    client, server = env.pair()
    yield do(client.shutdown, WR), OK
    yield do(client.shutdown, RD), OK
    yield env.poll(client, "HUP"), "IN|HUP|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(server.recv, 1), b""
    yield env.until(lambda: do(server.send, b"x", QUIET) == "EPIPE"), True


@case("9.1")
def data_sent_before(env: Env) -> Steps:
    """Data sent before shutdown() arrives."""
    client, server = env.pair()
    client.sendall(bytes(100_000))
    yield do(client.shutdown, RDWR), OK
    yield len(env.receive(server, 200_000)), 100_000


@case("9.1")
def data_that_comes_after(env: Env) -> Steps:
    """Data that arrives after SHUT_RD is not returned, and does not end the connection."""
    client, server = env.pair()
    yield do(server.send, b"early"), 5
    env.poll(client, "IN")
    yield do(client.shutdown, RD), OK
    yield do(client.recv, 10), b""
    yield do(client.send, b"x"), 1
    yield do(server.recv, 10), b"x"


@case("9.1")
def after_the_peer_half_closed(env: Env) -> Steps:
    """Answering a half-close with one ends the connection in order."""
    client, server = env.pair()
    server.shutdown(WR)
    yield do(client.recv, 1), b""
    yield do(client.shutdown, WR), OK
    yield env.poll(client, "HUP"), "IN|HUP|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(client.recv, 1), b""


@case("9.1")
def after_the_peer_closed(env: Env) -> Steps:
    """It is still allowed after the peer has closed."""
    client, server = env.pair()
    server.close()
    env.poll(client, "RDHUP")
    yield do(client.shutdown, WR), OK
    yield do(client.getpeername), "ENOTCONN"


@case("9.1")
def end_of_file_afterwards(env: Env) -> Steps:
    """After it, a connection that the peer has closed returns the end of the data, perhaps not at once."""
    client, server = env.pair()
    server.close()
    yield do(client.recv, 1), b""
    yield do(client.shutdown, WR), OK
    # The kernel forgets the end, and returns ENOTCONN until the peer's answer arrives.
    yield env.until(lambda: do(client.recv, 1) == b""), True


@case("9.1")
def of_a_listener_that_has_guests(env: Env) -> Steps:
    """A listener is not connected, also if connections wait."""
    listener = env.listener()
    env.connected_to(listener)
    yield do(listener.shutdown, RDWR), "ENOTCONN"
    yield do(env.accept(listener).recv, 1, NOW), "EAGAIN"


@family("9.1", KINDS)
def sender_that_waits(env: Env, kind: int) -> Steps:
    """A blocked sender gets an error when the peer shuts down receiving."""
    client, server = env.pair(kind)
    env.fill(server)
    sending = env.background(lambda: server.send(bytes(4096), QUIET))
    env.until(lambda: env.waits(sending))
    client.shutdown(RD)
    yield sending(), "EPIPE"


@case("9.1")
def wakes_poll(env: Env) -> Steps:
    """It wakes a poll() in another thread."""
    client, _ = env.pair()
    polling = env.background(lambda: env.poll(client, "IN"))
    env.until(lambda: env.waits(polling))
    client.shutdown(RD)
    yield polling(), "IN|OUT|RDHUP"

"""listen(): when it is allowed, and how many connections wait (section 4)."""

import socket

from tests.oracle.case import OK, Steps, case, do, family
from tests.oracle.env import ANY, SEQPACKET, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}


@family("4", KINDS)
def unbound(env: Env, kind: int) -> Steps:
    """listen() does not choose a port."""
    sock = env.socket(kind)
    yield do(sock.listen, 1), "EINVAL"
    yield env.get_int(sock, socket.SO_ACCEPTCONN), 0
    yield do(sock.getsockname), (ANY, ANY)


@family("4", KINDS)
def bound(env: Env, kind: int) -> Steps:
    """A bound socket can listen, again and again."""
    sock = env.bound(kind)
    for backlog in (1, 5, 0):
        yield do(sock.listen, backlog), OK
        yield env.get_int(sock, socket.SO_ACCEPTCONN), 1


@case("4")
def when_connected(env: Env) -> Steps:
    """A connected socket cannot listen, on either side."""
    client, server = env.pair()
    yield do(client.listen, 1), "EINVAL"
    yield do(server.listen, 1), "EINVAL"


@case("4")
def while_connecting(env: Env) -> Steps:
    """A socket that waits for an answer cannot listen."""
    sock = env.socket()
    sock.setblocking(False)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    yield do(sock.listen, 1), "EINVAL"


@case("4")
def after_shutdown(env: Env) -> Steps:
    """A socket that was shut down cannot listen."""
    client, _ = env.pair()
    client.shutdown(socket.SHUT_RDWR)
    yield do(client.listen, 1), "EINVAL"


@case("4")
def after_a_refused_connect(env: Env) -> Steps:
    """A client that was refused has a port and can listen on it."""
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield do(sock.listen, 1), OK
    client = env.socket()
    yield do(client.connect, env.at(sock)), OK


@family("4", {"0": 0, "1": 1, "4": 4})
def backlog(env: Env, backlog: int) -> Steps:
    """With a backlog of n, n + 1 connections wait; the next one is refused."""
    listener = env.listener(STREAM, backlog)
    for _ in range(backlog + 1):
        yield do(env.socket().connect, env.at(listener)), OK
    yield do(env.socket().connect, env.at(listener)), "ECONNRESET"


@case("4")
def backlog_of_seqpacket(env: Env) -> Steps:
    """The same for SEQPACKET."""
    listener = env.listener(SEQPACKET, 0)
    yield do(env.socket(SEQPACKET).connect, env.at(listener)), OK
    yield do(env.socket(SEQPACKET).connect, env.at(listener)), "ECONNRESET"


@family("4", {"-1": -1, "most negative": -(2**31), "largest": 2**31 - 1})
def backlog_out_of_range(env: Env, backlog: int) -> Steps:
    """Negative and huge backlogs mean the maximum."""
    listener = env.bound()
    yield do(env.libc.listen, listener, backlog), OK
    yield [do(env.socket().connect, env.at(listener)) for _ in range(40)], [OK] * 40


@family("4", {"-1": (-1, 1), "largest": (2**31 - 1, 40)})
def backlog_out_of_range_in_python(env: Env, backlog: int, waiting: int) -> Steps:
    """Python's own rule is that a negative backlog means 0."""
    listener = env.bound()
    yield do(listener.listen, backlog), OK
    yield [do(env.socket().connect, env.at(listener)) for _ in range(waiting)], [OK] * waiting
    if backlog < 0:
        yield do(env.socket().connect, env.at(listener)), "ECONNRESET"


@case("4")
def accepting_makes_room(env: Env) -> Steps:
    """Each accept() makes room for one more connection."""
    listener = env.listener(STREAM, 0)
    for _ in range(3):
        yield do(env.socket().connect, env.at(listener)), OK
        yield do(env.socket().connect, env.at(listener)), "ECONNRESET"
        env.accept(listener)


@case("4")
def backlog_lowered(env: Env) -> Steps:
    """A second listen() with a smaller backlog keeps waiting connections and refuses further ones."""
    listener = env.listener(STREAM, 5)
    clients = [env.connected_to(listener) for _ in range(3)]
    yield do(listener.listen, 0), OK
    yield do(env.socket().connect, env.at(listener)), "ECONNRESET"
    for client in clients:
        yield do(env.accept(listener).getpeername), (1, client.getsockname()[1])
    yield do(env.socket().connect, env.at(listener)), OK


@case("4")
def backlog_raised(env: Env) -> Steps:
    """A second listen() with a larger backlog allows more waiting connections."""
    listener = env.listener(STREAM, 0)
    yield do(env.socket().connect, env.at(listener)), OK
    yield do(env.socket().connect, env.at(listener)), "ECONNRESET"
    yield do(listener.listen, 1), OK
    yield do(env.socket().connect, env.at(listener)), OK
    yield do(env.socket().connect, env.at(listener)), "ECONNRESET"


@family(
    "4",
    {
        "connect": ("connect", (1, 2000), "EINVAL"),
        "send": ("send", b"x", "ENOTCONN"),
        "recv": ("recv", 1, "ENOTCONN"),
        "shut down reading": ("shutdown", socket.SHUT_RD, "ENOTCONN"),
        "shut down writing": ("shutdown", socket.SHUT_WR, "ENOTCONN"),
        "shut down both": ("shutdown", socket.SHUT_RDWR, "ENOTCONN"),
        "bind": ("bind", (ANY, 2000), "EINVAL"),
    },
)
def listener_refuses(env: Env, method: str, argument: object, result: str) -> Steps:
    """Calls that fail on a listener, which goes on listening."""
    listener = env.listener()
    yield do(getattr(listener, method), argument), result
    yield do(listener.getpeername), "ENOTCONN"
    client = env.connected_to(listener)
    yield do(env.accept(listener).getpeername), (1, client.getsockname()[1])


@case("4")
def two_listeners_of_one_port(env: Env) -> Steps:
    """Each gets the connections to its CID."""
    port = env.port()
    listeners = {}
    for cid in (1, 2):
        listeners[cid] = env.socket()
        listeners[cid].bind((cid, port))
        listeners[cid].listen(1)
    for cid in (2, 1):
        client = env.socket()
        client.connect((cid, port))
        yield do(env.accept(listeners[cid]).getsockname), (cid, port)


@case("4")
def listener_on_one_cid(env: Env) -> Steps:
    """A listener on an explicit CID gets no connections to another."""
    listener = env.bound(cid=2)
    listener.listen(1)
    yield do(env.socket().connect, env.at(listener, 1)), "ECONNRESET"
    yield do(env.socket().connect, env.at(listener, 2)), OK

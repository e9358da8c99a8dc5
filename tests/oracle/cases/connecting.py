"""connect() of a blocking socket: outcomes, states, and trying again (section 5)."""

import socket
import time

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import (
    AF_VSOCK,
    ANY,
    CONNECT_TIMEOUT,
    LOCAL,
    OWN,
    SEQPACKET,
    STREAM,
    Env,
)

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
ERROR = socket.SO_ERROR


@family("5.3", KINDS)
def connected(env: Env, kind: int) -> Steps:
    """A connection to a listener."""
    listener = env.listener(kind)
    sock = env.socket(kind)
    yield do(sock.connect, env.at(listener)), OK
    yield do(sock.getpeername), env.at(listener)
    yield env.get_int(sock, ERROR), 0


@family("5.3", KINDS)
def nobody(env: Env, kind: int) -> Steps:
    """No socket is bound to the port: ECONNRESET, never ECONNREFUSED."""
    sock = env.socket(kind)
    yield do(sock.connect, env.refused(kind)), "ECONNRESET"
    yield do(sock.getpeername), "ENOTCONN"


@family("5.3", KINDS)
def bound_only(env: Env, kind: int) -> Steps:
    """The port is bound, but its owner does not listen."""
    other = env.bound(kind)
    yield do(env.socket(kind).connect, env.at(other)), "ECONNRESET"


@case("5.3")
def to_a_connected_client(env: Env) -> Steps:
    """Connecting to the port of a client is refused."""
    client, _ = env.pair()
    yield do(env.socket().connect, env.at(client)), "ECONNRESET"


@case("5.3")
def closed_listener(env: Env) -> Steps:
    """Connecting to a closed listener is refused."""
    listener = env.listener()
    address = env.at(listener)
    listener.close()
    yield do(env.socket().connect, address), "ECONNRESET"


@family("5.3", {"stream to seqpacket": (STREAM, SEQPACKET), "and back": (SEQPACKET, STREAM)})
def other_type(env: Env, kind: int, theirs: int) -> Steps:
    """A listener of the other type refuses; a socket of its own type can still connect."""
    listener = env.listener(theirs)
    yield do(env.socket(kind).connect, env.at(listener)), "ECONNRESET"
    yield do(env.socket(theirs).connect, env.at(listener)), OK


@family(
    "5.3",
    {
        "missing guest": (STREAM, (78, 9), "ENODEV"),
        "hypervisor": (STREAM, (0, 9), "ENODEV"),
        "hypervisor, seqpacket": (SEQPACKET, (0, 9), "ENODEV"),
        "CID any": (STREAM, (ANY, 9), "ENODEV"),
        "own CID": (STREAM, (OWN, 9), "ECONNRESET"),
        "port any": (STREAM, (LOCAL, ANY), "ECONNRESET"),
    },
)
def destination(env: Env, kind: int, address: tuple[int, int], result: str) -> Steps:
    """Destinations without a listener or a machine."""
    yield do(env.socket(kind).connect, address), result


@family(
    "5.3",
    {"missing guest": 78, "CID any": ANY, "silent guest": 77},
)
def seqpacket_destination(env: Env, cid: int) -> Steps:
    """SEQPACKET needs a guest that has negotiated it."""
    yield do(env.socket(SEQPACKET).connect, (cid, 9)), "ESOCKTNOSUPPORT"


@case("5.3")
def no_answer(env: Env) -> Steps:
    """Without an answer in the connect timeout it is ETIMEDOUT."""
    sock = env.socket()
    env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT, 0.05)
    begun = time.monotonic()
    yield do(sock.connect, env.SILENT), "ETIMEDOUT"
    yield 0.04 < time.monotonic() - begun < 1, True
    yield do(sock.getpeername), "ENOTCONN"


@case("5.3")
def no_answer_for_two_seconds(env: Env) -> Steps:
    """The default timeout is 2 s."""
    begun = time.monotonic()
    yield do(env.socket().connect, env.SILENT), "ETIMEDOUT"
    yield 1.9 < time.monotonic() - begun < 3.5, True


@case("5.3")
def send_timeout_does_not_count(env: Env) -> Steps:
    """SO_SNDTIMEO does not end a connect."""
    sock = env.socket()
    env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT, 0.2)
    env.set_time(sock, socket.SOL_SOCKET, socket.SO_SNDTIMEO, 0.01)
    begun = time.monotonic()
    yield do(sock.connect, env.SILENT), "ETIMEDOUT"
    yield time.monotonic() - begun > 0.15, True


@case("5.1")
def when_connected(env: Env) -> Steps:
    """A second connect is EISCONN, to whatever address, on either side."""
    client, server = env.pair()
    for sock in (client, server):
        for address in (client.getpeername(), env.refused(), env.MISSING):
            yield do(sock.connect, address), "EISCONN"
    yield do(client.send, b"fine"), 4
    yield do(server.recv, 10), b"fine"


@case("5.1")
def when_connected_and_closed_by_the_peer(env: Env) -> Steps:
    """A socket whose peer has closed cannot connect again."""
    client, server = env.pair()
    server.close()
    env.poll(client, "RDHUP")
    yield do(client.connect, env.refused()), "EISCONN"
    yield do(client.getpeername)[0], LOCAL


@family(
    "5.1",
    {"reading": socket.SHUT_RD, "writing": socket.SHUT_WR, "both": socket.SHUT_RDWR},
)
def after_shutdown(env: Env, how: int) -> Steps:
    """After any shutdown() it is EINVAL."""
    client, _ = env.pair()
    client.shutdown(how)
    yield do(client.connect, env.refused()), "EINVAL"


@case("5.3")
def again_after_refusal(env: Env) -> Steps:
    """A refused socket can try again, from the same port."""
    address = env.refused()
    sock = env.socket()
    yield do(sock.connect, address), "ECONNRESET"
    before = sock.getsockname()
    listener = env.socket()
    listener.bind((ANY, address[1]))
    listener.listen(1)
    yield do(sock.connect, address), OK
    now = sock.getsockname()
    yield now == before, True
    yield do(env.accept(listener).getpeername), (LOCAL, now[1])


@case("5.3")
def again_after_timeout(env: Env) -> Steps:
    """The same after a timeout, also to another CID."""
    listener = env.listener()
    sock = env.socket()
    env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT, 0.05)
    yield do(sock.connect, env.SILENT), "ETIMEDOUT"
    before = sock.getsockname()
    yield do(sock.connect, env.at(listener)), OK
    yield sock.getsockname() == before, True


@case("5.3")
def again_after_missing_guest(env: Env) -> Steps:
    """The same after ENODEV."""
    listener = env.listener()
    sock = env.socket()
    yield do(sock.connect, env.MISSING), "ENODEV"
    yield do(sock.connect, (0, 1)), "ENODEV"
    yield do(sock.connect, env.at(listener)), OK


@case("5.3")
def again_after_wrong_type(env: Env) -> Steps:
    """A SEQPACKET socket can connect elsewhere after a guest without SEQPACKET."""
    listener = env.listener(SEQPACKET)
    sock = env.socket(SEQPACKET)
    yield do(sock.connect, env.MISSING), "ESOCKTNOSUPPORT"
    yield do(sock.connect, env.at(listener)), OK


@case("5.2")
def refusal_does_not_stay(env: Env) -> Steps:
    """A blocking connect returns its error; SO_ERROR does not report it again."""
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield env.poll(sock), "OUT"
    yield env.get_int(sock, ERROR), 0


@case("5.2")
def next_attempt_clears_the_error(env: Env) -> Steps:
    """A new attempt clears the error of the last one."""
    listener = env.listener()
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield do(sock.connect, env.at(listener)), OK
    yield env.get_int(sock, ERROR), 0


@family("5.3", {"any": ANY, "local": LOCAL})
def from_a_bound_port(env: Env, cid: int) -> Steps:
    """The port that was bound is the one that the peer sees."""
    listener = env.listener()
    sock, port = env.socket(), env.port()
    sock.bind((cid, port))
    yield do(sock.connect, env.at(listener)), OK
    yield do(env.accept(listener).getpeername), (LOCAL, port)


@case("5.3")
def same_port_again(env: Env) -> Steps:
    """Both ends closed, the same pair of ports can be connected again at once."""
    listener, port = env.listener(), env.port()
    for word in (b"one", b"two", b"three"):
        sock = env.socket()
        sock.bind((ANY, port))
        yield do(sock.connect, env.at(listener)), OK
        server = env.accept(listener)
        yield do(sock.send, word), len(word)
        yield env.receive(server, len(word)), word
        server.close()
        env.poll(sock, "RDHUP")
        sock.close()


@case("5.3")
def same_port_while_the_old_end_is_open(env: Env) -> Steps:
    """A client that connects again from the same port gets a new connection."""
    listener, port = env.listener(), env.port()
    first = env.socket()
    first.bind((ANY, port))
    first.connect(env.at(listener))
    old = env.accept(listener)
    first.close()
    env.poll(old, "RDHUP")
    second = env.socket()
    yield env.until(lambda: do(second.bind, (ANY, port)) == OK), True
    yield do(second.connect, env.at(listener)), OK
    new = env.accept(listener)
    yield do(second.send, b"new"), 3
    yield do(new.recv, 10), b"new"
    yield do(old.recv, 10), b""


@case("12.5")
def to_itself(env: Env) -> Steps:
    """A socket that connects to its own port receives its own request instead of an answer."""
    sock = env.bound()
    yield do(sock.connect, env.at(sock)), "EPROTO"


@case("5.3")
def signal_while_waiting(env: Env) -> Steps:
    """A signal ends the attempt with EINTR; the socket can connect again."""
    listener = env.listener()
    sock = env.socket()
    yield env.interrupted(lambda: env.libc.connect(sock, _raw(env.SILENT))), "EINTR"
    yield do(sock.getpeername), "ENOTCONN"
    yield do(sock.connect, env.at(listener)), OK, ours("D24", preload="ETIMEDOUT")


def _raw(address: tuple[int, int]) -> bytes:
    from tests.oracle.libc import sockaddr

    return sockaddr(*address)

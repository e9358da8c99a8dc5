"""poll() in every state of a connection (section 9.4)."""

import select
import socket

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import AF_VSOCK, CONNECT_TIMEOUT, SEQPACKET, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
RD, WR, RDWR = socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR
QUIET = socket.MSG_NOSIGNAL
NOW = socket.MSG_DONTWAIT


@family("9.4", KINDS)
def fresh(env: Env, kind: int) -> Steps:
    """A new socket is writable, without POLLHUP."""
    yield env.poll(env.socket(kind)), "OUT", ours("D2a", "OUT|HUP")


@family("9.4", KINDS)
def bound(env: Env, kind: int) -> Steps:
    """So is a bound one."""
    yield env.poll(env.bound(kind)), "OUT"


@case("9.4")
def refused(env: Env) -> Steps:
    """So is one whose blocking connect was refused."""
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield env.poll(sock), "OUT"


@case("9.4")
def timed_out(env: Env) -> Steps:
    """So is one whose blocking connect timed out."""
    sock = env.socket()
    env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT, 0.05)
    yield do(sock.connect, env.SILENT), "ETIMEDOUT"
    yield env.poll(sock), "OUT"


@case("9.4")
def connecting(env: Env) -> Steps:
    """No event until the answer arrives."""
    sock = env.socket()
    sock.setblocking(False)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    yield env.poll(sock), "nothing"


@family("9.4", KINDS)
def listening(env: Env, kind: int) -> Steps:
    """A listener is readable while connections wait, and never writable."""
    listener = env.listener(kind)
    yield env.poll(listener), "nothing", ours("D2f", "OUT")
    env.connected_to(listener, kind)
    yield env.poll(listener, "IN"), "IN", ours("D2f", "IN|OUT")
    env.accept(listener)
    yield env.poll(listener), "nothing", ours("D2f", "OUT")


@case("9.4")
def listening_two_wait(env: Env) -> Steps:
    """It stays readable until all are accepted."""
    listener = env.listener()
    for _ in range(2):
        env.connected_to(listener)
    for _ in range(2):
        yield env.poll(listener, "IN"), "IN", ours("D2f", "IN|OUT")
        env.accept(listener)
    yield env.poll(listener), "nothing", ours("D2f", "OUT")


@family("9.4", KINDS)
def idle(env: Env, kind: int) -> Steps:
    """A connection without data is writable."""
    client, server = env.pair(kind)
    yield env.poll(client), "OUT"
    yield env.poll(server), "OUT"


@family("9.4", KINDS)
def data(env: Env, kind: int) -> Steps:
    """With data it is readable too, until the data is read."""
    client, server = env.pair(kind)
    server.send(b"data")
    yield env.poll(client, "IN"), "IN|OUT"
    client.recv(2)
    yield env.poll(client), "IN|OUT" if kind == STREAM else "OUT"
    if kind == STREAM:
        client.recv(2)
    yield env.poll(client), "OUT"


@family("9.4", KINDS)
def peer_half_closed(env: Env, kind: int) -> Steps:
    """After the peer's SHUT_WR it is readable (the end of the data), and stays writable."""
    client, server = env.pair(kind)
    server.shutdown(WR)
    yield env.poll(client, "RDHUP"), "IN|OUT|RDHUP"
    yield do(client.recv, 1), b""
    yield env.poll(client), "IN|OUT|RDHUP"


@case("9.4")
def peer_stopped_reading(env: Env) -> Steps:
    """The peer's SHUT_RD causes no event."""
    client, server = env.pair()
    server.shutdown(RD)
    env.until(lambda: do(client.send, b"x", QUIET) == "EPIPE")
    yield env.poll(client), "OUT"


@family("9.4", KINDS)
def peer_closed(env: Env, kind: int) -> Steps:
    """The peer's close is no POLLHUP: this side is still open."""
    client, server = env.pair(kind)
    server.close()
    yield env.poll(client, "RDHUP"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(client.recv, 1), b""
    yield env.poll(client), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(client.send, b"x", QUIET), "EPIPE"
    yield env.poll(client), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")


@case("9.4")
def peer_closed_with_data(env: Env) -> Steps:
    """The same with data that is still to be read."""
    client, server = env.pair()
    server.send(b"data")
    server.close()
    yield env.poll(client, "RDHUP"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(client.recv, 10), b"data"
    yield env.poll(client), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")


@family("9.4", {"reading": (RD, "IN|OUT|RDHUP"), "writing": (WR, "nothing")})
def own_half_close(env: Env, how: int, bits: str) -> Steps:
    """SHUT_WR on this side."""
    client, _ = env.pair()
    client.shutdown(how)
    yield env.poll(client), bits, ours("D2g", bits if how == RD else "OUT")


@case("9.4")
def own_half_close_with_data(env: Env) -> Steps:
    """After SHUT_WR, poll() still reports data."""
    client, server = env.pair()
    client.shutdown(WR)
    server.send(b"data")
    yield env.poll(client, "IN"), "IN", ours("D2g", "IN|OUT")


@family("9.4", KINDS)
def both_shut_down_by_us(env: Env, kind: int) -> Steps:
    """Both directions shut down on this side are POLLHUP."""
    client, server = env.pair(kind)
    client.shutdown(RDWR)
    yield env.poll(client), "IN|HUP|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield env.poll(server, "RDHUP"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")


@case("9.4")
def both_half_closed(env: Env) -> Steps:
    """SHUT_WR on both sides is POLLHUP."""
    client, server = env.pair()
    client.shutdown(WR)
    server.shutdown(WR)
    yield env.poll(client, "HUP"), "IN|HUP|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield env.poll(server, "HUP"), "IN|HUP|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")


@case("9.4")
def half_closed_and_peer_closed(env: Env) -> Steps:
    """The same if the peer closes."""
    client, server = env.pair()
    client.shutdown(WR)
    server.close()
    yield env.poll(client, "HUP"), "IN|HUP|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")


@case("9.4")
def closed(env: Env) -> Steps:
    """A closed descriptor is POLLNVAL."""
    sock = env.socket()
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    sock.close()
    yield [bits for _, bits in poll.poll(0)], [select.POLLNVAL]


@family(
    "9.4",
    {
        "readable": ("data", select.POLLIN | select.POLLRDNORM),
        "writable": ("idle", select.POLLOUT | select.POLLWRNORM),
        "priority": ("data", select.POLLPRI),
    },
)
def bits_in_company(env: Env, state: str, asked: int) -> Steps:
    """IN comes with RDNORM, OUT with WRNORM; WRBAND and PRI never come."""
    client, server = env.pair()
    if state == "data":
        server.send(b"x")
        env.poll(client, "IN")
    poll = select.poll()
    poll.register(client.fileno(), asked | select.POLLWRBAND | select.POLLPRI)
    expected = [asked] if asked != select.POLLPRI else []
    with_writable = [sum(expected) | select.POLLWRBAND]
    yield [bits for _, bits in poll.poll(0)], expected, ours("D2h", with_writable)


@case("9.4")
def error_of_a_refusal(env: Env) -> Steps:
    """A refused attempt is POLLERR until SO_ERROR is read."""
    sock = env.socket()
    sock.setblocking(False)
    yield do(sock.connect, env.refused()), "EINPROGRESS"
    yield env.poll(sock, "OUT"), "OUT|ERR", ours("D2b", "IN|OUT")
    yield env.poll(sock), "OUT|ERR", ours("D2b", "IN|OUT")
    yield env.get_int(sock, socket.SO_ERROR), 104
    yield env.poll(sock), "OUT"


@case("9.4")
def accepted_and_never_used(env: Env) -> Steps:
    """A connection that waits for accept is writable for the client."""
    listener = env.listener()
    client = env.connected_to(listener)
    yield env.poll(client), "OUT"
    yield env.set_int(client, socket.SO_KEEPALIVE, 1), OK

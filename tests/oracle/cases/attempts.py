"""connect() of a non-blocking socket, and of one with a Python timeout (section 5)."""

import socket
from typing import Any

from tests.oracle.case import OK, Steps, case, do, family, ours, since
from tests.oracle.env import (
    AF_VSOCK,
    ANY,
    CONNECT_TIMEOUT,
    LOCAL,
    SEQPACKET,
    STREAM,
    Env,
)

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
ERROR = socket.SO_ERROR


def nonblocking(env: Env, kind: int = STREAM, timeout: float = 0) -> Any:
    """A non-blocking socket."""
    sock = env.socket(kind)
    sock.setblocking(False)
    if timeout:
        env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT, timeout)
    return sock


@family("5.3", KINDS)
def success(env: Env, kind: int) -> Steps:
    """EINPROGRESS, writable, no error, connected; then EISCONN."""
    listener = env.listener(kind)
    sock = nonblocking(env, kind)
    yield do(sock.connect, env.at(listener)), "EINPROGRESS"
    yield env.poll(sock, "OUT"), "OUT"
    yield env.get_int(sock, ERROR), 0
    yield do(sock.getpeername), env.at(listener)
    yield do(sock.connect, env.at(listener)), "EISCONN"
    yield do(sock.send, b"hello"), 5
    yield do(env.accept(listener).recv, 10), b"hello"


@family("5.3", KINDS)
def refusal(env: Env, kind: int) -> Steps:
    """EINPROGRESS, an error to poll, ECONNRESET in SO_ERROR, once."""
    sock = nonblocking(env, kind)
    yield do(sock.connect, env.refused()), "EINPROGRESS"
    yield env.poll(sock, "OUT"), "OUT|ERR", ours("D2b", "IN|OUT")
    yield env.get_int(sock, ERROR), 104
    yield env.get_int(sock, ERROR), 0
    yield env.poll(sock, "OUT"), "OUT"


@case("5.1")
def again_after_refusal(env: Env) -> Steps:
    """After a refusal another non-blocking connect is EALREADY, also to a listener."""
    listener = env.listener()
    sock = nonblocking(env)
    yield do(sock.connect, env.refused()), "EINPROGRESS"
    env.poll(sock, "OUT")
    yield do(sock.connect, env.at(listener)), "EALREADY", ours("D7", "ECONNRESET")
    yield env.get_int(sock, ERROR), 104, ours("D7", 0)
    yield do(sock.connect, env.at(listener)), "EALREADY", ours("D7", "EINPROGRESS")


@case("5.1")
def blocking_connect_takes_the_refusal(env: Env) -> Steps:
    """A blocking connect returns the pending refusal; after that the socket can connect."""
    listener = env.listener()
    sock = nonblocking(env)
    yield do(sock.connect, env.refused()), "EINPROGRESS"
    env.poll(sock, "OUT")
    sock.setblocking(True)
    yield do(sock.connect, env.at(listener)), "ECONNRESET"
    yield do(sock.connect, env.at(listener)), OK


@case("5.3")
def timeout(env: Env) -> Steps:
    """Without an answer the error is set after the connect timeout."""
    sock = nonblocking(env, timeout=0.05)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    yield env.poll(sock, "OUT"), "OUT|ERR", ours("D2b", "IN|OUT")
    yield env.get_int(sock, ERROR), 110
    yield env.get_int(sock, ERROR), 0


@case("5.3")
def again_after_timeout(env: Env) -> Steps:
    """After a timeout the socket can connect."""
    listener = env.listener()
    sock = nonblocking(env, timeout=0.05)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    env.poll(sock, "OUT")
    once_failed = since("6.12", "EINPROGRESS", before="ETIMEDOUT")
    yield do(sock.connect, env.at(listener)), once_failed
    yield env.poll(sock, "OUT"), "OUT"
    yield env.get_int(sock, ERROR), 0
    yield do(sock.connect, env.at(listener)), since("6.12", "EISCONN", before="EINPROGRESS")


@case("5.1")
def while_waiting(env: Env) -> Steps:
    """A second connect while the first waits is EALREADY, to any address."""
    listener = env.listener()
    sock = nonblocking(env)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    yield do(sock.connect, env.SILENT), "EALREADY"
    yield do(sock.connect, env.at(listener)), "EALREADY"
    yield env.poll(sock), "nothing"
    yield env.get_int(sock, ERROR), 0


@family(
    "5.1",
    {
        "send": ("send", b"x", "ENOTCONN"),
        "recv": ("recv", 1, "ENOTCONN"),
        "bind": ("bind", (ANY, 2500), "EINVAL"),
        "accept": ("accept", None, "EINVAL"),
        "getpeername": ("getpeername", None, "ENOTCONN"),
        "shut down reading": ("shutdown", socket.SHUT_RD, OK),
        "shut down writing": ("shutdown", socket.SHUT_WR, OK),
    },
)
def other_calls_while_waiting(env: Env, method: str, argument: object, result: str) -> Steps:
    """Other calls on a socket that waits for an answer."""
    sock = nonblocking(env)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    arguments = () if argument is None else (argument,)
    yield do(getattr(sock, method), *arguments), result
    yield sock.getsockname()[0], ANY
    yield sock.getsockname()[1] != ANY, True


@case("9.1")
def connect_after_shutdown_while_waiting(env: Env) -> Steps:
    """After shutdown() of an attempt another connect fails."""
    sock = nonblocking(env)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    yield do(sock.shutdown, socket.SHUT_RDWR), OK
    yield do(sock.connect, env.SILENT), "EINVAL"


@case("5.1")
def blocking_connect_joins_the_attempt(env: Env) -> Steps:
    """A blocking connect during an attempt waits for it, and returns its outcome."""
    sock = nonblocking(env, timeout=0.1)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    sock.setblocking(True)
    yield do(sock.connect, env.SILENT), "ETIMEDOUT"


@family(
    "5.3",
    {
        "missing guest": (STREAM, (78, 9), "ENODEV"),
        "hypervisor": (STREAM, (0, 9), "ENODEV"),
        "missing guest, seqpacket": (SEQPACKET, (78, 9), "ESOCKTNOSUPPORT"),
    },
)
def immediate_error(env: Env, kind: int, address: tuple[int, int], result: str) -> Steps:
    """An error that is known at once is returned at once."""
    sock = nonblocking(env, kind)
    yield do(sock.connect, address), result
    yield env.get_int(sock, ERROR), 0


@case("5.2")
def refused_by_the_transport(env: Env) -> Steps:
    """After a connect that the transport refuses, poll() is as during an attempt."""
    sock = env.socket()
    yield do(sock.connect, env.MISSING), "ENODEV"
    yield env.poll(sock), "nothing", ours("D2i", "OUT")
    yield do(sock.connect, env.at(env.listener())), OK


@case("5.3")
def closed_while_waiting(env: Env) -> Steps:
    """A socket can be closed while it waits; its port is free."""
    sock = nonblocking(env)
    yield do(sock.connect, env.SILENT), "EINPROGRESS"
    address = sock.getsockname()
    sock.close()
    yield env.until(lambda: do(env.socket().bind, address) == OK), True


@case("5.3")
def python_timeout(env: Env) -> Steps:
    """Python's timeout ends the wait, not the attempt."""
    sock = env.socket()
    sock.settimeout(0.05)
    yield do(sock.connect, env.SILENT), "TimeoutError"
    sock.setblocking(False)
    yield do(sock.connect, env.SILENT), "EALREADY"


@case("5.3")
def python_timeout_and_success(env: Env) -> Steps:
    """With a timeout a connect works like one without."""
    listener = env.listener()
    sock = env.socket()
    sock.settimeout(2)
    yield do(sock.connect, env.at(listener)), OK
    yield do(sock.getpeername), env.at(listener)


@case("5.3")
def python_timeout_and_refusal(env: Env) -> Steps:
    """A refusal is the same with a timeout."""
    sock = env.socket()
    sock.settimeout(2)
    yield do(sock.connect, env.refused()), "ECONNRESET"


@case("5.3")
def connect_ex(env: Env) -> Steps:
    """The errno that connect() would raise is returned."""
    listener = env.listener()
    sock = env.socket()
    yield do(sock.connect_ex, env.refused()), 104
    yield do(sock.connect_ex, env.at(listener)), 0
    yield do(sock.connect_ex, env.at(listener)), 106
    other = nonblocking(env)
    yield do(other.connect_ex, env.SILENT), 115
    yield do(other.connect_ex, env.SILENT), 114


@case("5.3")
def many_at_once(env: Env) -> Steps:
    """Many attempts of one thread each have their own outcome."""
    listener = env.listener(STREAM, 20)
    good = [nonblocking(env) for _ in range(10)]
    bad = [nonblocking(env) for _ in range(10)]
    for one, other in zip(good, bad, strict=True):
        do(one.connect, env.at(listener))
        do(other.connect, env.refused())
    for sock in good + bad:
        env.poll(sock, "OUT")
    yield [env.get_int(sock, ERROR) for sock in good], [0] * 10
    yield [env.get_int(sock, ERROR) for sock in bad], [104] * 10
    yield {do(env.accept(listener).getpeername)[0] for _ in good}, {LOCAL}

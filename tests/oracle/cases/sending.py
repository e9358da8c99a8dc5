"""send() on a stream: the checks before anything is sent, and their order (section 6.1)."""

import array
import os
import signal
import socket

from tests.oracle.case import Steps, case, do, family, ours, since
from tests.oracle.env import LOCAL, SEQPACKET, STREAM, Env

QUIET = socket.MSG_NOSIGNAL
KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}


@family("6.1", KINDS)
def not_connected(env: Env, kind: int) -> Steps:
    """Without a connection it is ENOTCONN, whatever the length."""
    for sock in (env.socket(kind), env.bound(kind), env.listener(kind)):
        for data in (b"x", b""):
            yield do(sock.send, data, QUIET), "ENOTCONN"


@case("6.1")
def after_a_refused_connect(env: Env) -> Steps:
    """A refused socket is not connected."""
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield do(sock.send, b"x", QUIET), "ENOTCONN"


@family("6.1", KINDS)
def out_of_band(env: Env, kind: int) -> Steps:
    """MSG_OOB is not supported, which is checked first."""
    client, server = env.pair(kind)
    yield do(client.send, b"x", socket.MSG_OOB), "EOPNOTSUPP"
    yield do(env.socket(kind).send, b"x", socket.MSG_OOB), "EOPNOTSUPP"
    client.shutdown(socket.SHUT_WR)
    yield do(client.send, b"x", socket.MSG_OOB | QUIET), "EOPNOTSUPP"
    yield do(server.send, b"x"), 1


@family("6.1", KINDS)
def to_an_address(env: Env, kind: int) -> Steps:
    """sendto() with an address is EISCONN when connected, else EOPNOTSUPP."""
    client, _ = env.pair(kind)
    yield do(client.sendto, b"x", client.getpeername()), "EISCONN"
    yield do(client.sendto, b"x", env.refused()), "EISCONN"
    yield do(env.socket(kind).sendto, b"x", env.refused()), "EOPNOTSUPP"
    yield do(env.listener(kind).sendto, b"x", env.refused()), "EOPNOTSUPP"


@case("6.1")
def to_an_address_after_shutdown(env: Env) -> Steps:
    """The address is checked before the shutdown."""
    client, _ = env.pair()
    client.shutdown(socket.SHUT_WR)
    yield do(client.sendto, b"x", QUIET, env.refused()), "EISCONN"


@case("6.1")
def nothing(env: Env) -> Steps:
    """Sending nothing sends nothing."""
    client, server = env.pair()
    yield do(client.send, b""), 0
    yield do(server.recv, 10, socket.MSG_DONTWAIT), "EAGAIN"
    yield do(client.send, b"x"), 1
    yield do(server.recv, 10), b"x"


@case("6.1")
def nothing_after_shutdown(env: Env) -> Steps:
    """The checks are also made for an empty send."""
    client, _ = env.pair()
    client.shutdown(socket.SHUT_WR)
    yield do(client.send, b"", QUIET), "EPIPE"


@family("6.1", KINDS)
def after_own_shutdown(env: Env, kind: int) -> Steps:
    """After shutdown(SHUT_WR) it is EPIPE; receiving works as before."""
    client, server = env.pair(kind)
    client.shutdown(socket.SHUT_WR)
    yield do(client.send, b"x", QUIET), "EPIPE"
    yield do(server.send, b"y"), 1
    yield do(client.recv, 10), b"y"


@case("6.1")
def after_own_shutdown_of_reading(env: Env) -> Steps:
    """shutdown(SHUT_RD) does not affect sending."""
    client, server = env.pair()
    client.shutdown(socket.SHUT_RD)
    yield do(client.send, b"x"), 1
    yield do(server.recv, 10), b"x"


@family("6.3", KINDS)
def after_the_peer_stopped_reading(env: Env, kind: int) -> Steps:
    """The peer's SHUT_RD makes sending EPIPE; poll() has no event for it."""
    client, server = env.pair(kind)
    server.shutdown(socket.SHUT_RD)
    yield env.until(lambda: do(client.send, b"x", QUIET) == "EPIPE"), True
    yield do(client.send, b"", QUIET), "EPIPE", ours("D23", "EPIPE" if kind == STREAM else 0)
    yield do(server.send, b"y"), 1
    yield do(client.recv, 10), b"y"


@family("6.3", KINDS)
def after_the_peer_closed(env: Env, kind: int) -> Steps:
    """After the peer's close the first send is EPIPE, and every further one."""
    client, server = env.pair(kind)
    server.close()
    env.poll(client, "RDHUP")
    yield do(client.send, b"x", QUIET), "EPIPE"
    yield do(client.send, b"x", QUIET), "EPIPE"
    yield env.get_int(client, socket.SO_ERROR), 0


@case("6.3")
def after_the_peer_stopped_writing(env: Env) -> Steps:
    """The peer's SHUT_WR does not affect sending."""
    client, server = env.pair()
    server.shutdown(socket.SHUT_WR)
    env.poll(client, "RDHUP")
    yield do(client.send, b"x"), 1
    yield do(server.recv, 10), b"x"


@family(
    "6.1",
    {
        "stream": (STREAM, 0, since("6.7", 1, before=0)),
        "stream, MSG_NOSIGNAL": (STREAM, QUIET, 0),
        "seqpacket": (SEQPACKET, 0, 0),
    },
)
def broken_pipe_signal(env: Env, kind: int, flags: int, times: object) -> Steps:
    """On a stream SIGPIPE comes with EPIPE, except with MSG_NOSIGNAL; never on SEQPACKET."""
    client, _ = env.pair(kind)
    client.shutdown(socket.SHUT_WR)
    with env.signals(signal.SIGPIPE) as caught:
        yield do(client.send, b"x", flags), "EPIPE"
    yield len(caught), times


@case("6.1")
def broken_pipe_signal_for_the_peers_close(env: Env) -> Steps:
    """SIGPIPE comes whichever side ended the direction."""
    client, server = env.pair()
    server.close()
    env.poll(client, "RDHUP")
    with env.signals(signal.SIGPIPE) as caught:
        yield do(client.send, b"x"), "EPIPE"
    yield len(caught), since("6.7", 1, before=0)


@case("6.1")
def no_signal_without_a_connection(env: Env) -> Steps:
    """ENOTCONN comes without a signal."""
    with env.signals(signal.SIGPIPE) as caught:
        yield do(env.socket().send, b"x"), "ENOTCONN"
    yield len(caught), 0


@family("6.1", {"MSG_EOR": socket.MSG_EOR, "MSG_MORE": socket.MSG_MORE})
def flag_without_effect(env: Env, flag: int) -> Steps:
    """Flags that a stream ignores."""
    client, server = env.pair()
    yield do(client.send, b"one", flag), 3
    yield env.receive(server, 3), b"one"
    client.send(b"x", flag)
    yield do(server.recvmsg, 10), (b"x", [], 0, None)


@case("6.1")
def ancillary_data(env: Env) -> Steps:
    """Descriptors cannot be sent: ancillary data is ignored."""
    client, server = env.pair()
    reading, writing = os.pipe()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writing]))]
    yield do(client.sendmsg, [b"data"], rights), 4
    os.close(writing)
    yield do(server.recvmsg, 10, 100)[:2], (b"data", [])
    yield os.read(reading, 1), b""  # the other end is closed
    os.close(reading)


@case("6.1")
def gathered(env: Env) -> Steps:
    """sendmsg() sends its pieces one after the other."""
    client, server = env.pair()
    yield do(client.sendmsg, [b"one", b"", b"two", b"three"]), 11
    yield env.receive(server, 11), b"onetwothree"


@case("6.1")
def as_a_file(env: Env) -> Steps:
    """read(), write(), readv() and writev() work on the descriptor."""
    client, server = env.pair()
    yield do(os.write, client.fileno(), b"written"), 7
    yield do(os.read, server.fileno(), 100), b"written"
    yield do(os.writev, client.fileno(), [b"in ", b"pieces"]), 9
    env.arrived(server, 9)
    one, two = bytearray(3), bytearray(20)
    yield do(os.readv, server.fileno(), [one, two]), 9
    yield bytes(one + two[:6]), b"in pieces"


@case("6.1")
def as_a_file_before_connect(env: Env) -> Steps:
    """A socket without a connection is ENOTCONN to read() and write()."""
    sock = env.socket()
    yield do(os.read, sock.fileno(), 1), "ENOTCONN", ours("D21", api="EINVAL")
    yield do(os.write, sock.fileno(), b"x"), "ENOTCONN"


@case("6.1")
def sendfile(env: Env) -> Steps:
    """The content of a file is sent without a read of the program."""
    client, server = env.pair()
    with open(__file__, "rb") as file:  # noqa: PTH123 - its descriptor is what is needed
        yield do(os.sendfile, client.fileno(), file.fileno(), 0, 100), 100
        file.seek(0)
        yield env.receive(server, 100) == file.read(100), True


@case("6.1")
def accepted_side(env: Env) -> Steps:
    """Both ends send in the same way."""
    client, server = env.pair()
    yield do(server.send, b"from the server"), 15
    yield do(client.recv, 100), b"from the server"
    yield do(server.sendto, b"x", (LOCAL, 1)), "EISCONN"

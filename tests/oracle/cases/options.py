"""Options of SOL_SOCKET, and rules for all options (section 10)."""

import socket
import struct

from tests.oracle.case import OK, Steps, case, do, family, ours, since
from tests.oracle.env import AF_VSOCK, CONNECT_TIMEOUT, CONNECT_TIMEOUT_NEW, SEQPACKET, STREAM, Env

SOL = socket.SOL_SOCKET
SO_ZEROCOPY = 60
SOL_VSOCK = 287
TIMES = {
    "receive": (SOL, socket.SO_RCVTIMEO),
    "send": (SOL, socket.SO_SNDTIMEO),
    "connect": (AF_VSOCK, CONNECT_TIMEOUT),
    "connect, new": (AF_VSOCK, CONNECT_TIMEOUT_NEW),
}


@family(
    "10.1",
    {
        "peer host": (AF_VSOCK, 3),
        "trusted": (AF_VSOCK, 5),
        "nonblocking": (AF_VSOCK, 7),
        "number 9": (AF_VSOCK, 9),
        "number -1": (AF_VSOCK, -1),
        "level 287": (SOL_VSOCK, 0),
        "level of TCP": (6, 1),
        "level 0": (0, 1),
        "option 9999 of SOL_SOCKET": (SOL, 9999),
    },
)
def unknown(env: Env, level: int, option: int) -> Steps:
    """Unknown options are ENOPROTOOPT, to set and to get."""
    for sock in (env.socket(), env.socket(SEQPACKET)):
        yield do(sock.setsockopt, level, option, bytes(8)), "ENOPROTOOPT"
        yield do(sock.getsockopt, level, option, 8), "ENOPROTOOPT"


@family(
    "10.2", {"SO_TYPE": 3, "SO_ERROR": 4, "SO_ACCEPTCONN": 30, "SO_PROTOCOL": 38, "SO_DOMAIN": 39}
)
def read_only(env: Env, option: int) -> Steps:
    """Options that can only be read."""
    yield env.set_int(env.socket(), option, 1), "ENOPROTOOPT"


@family(
    "10.2",
    {
        "SO_REUSEADDR": socket.SO_REUSEADDR,
        "SO_KEEPALIVE": socket.SO_KEEPALIVE,
        "SO_BROADCAST": socket.SO_BROADCAST,
        "SO_OOBINLINE": socket.SO_OOBINLINE,
    },
)
def switch_without_effect(env: Env, option: int) -> Steps:
    """Options that are stored without effect."""
    sock = env.socket()
    yield env.get_int(sock, option), 0
    yield env.set_int(sock, option, 5), OK
    yield env.get_int(sock, option), 1
    yield env.set_int(sock, option, 0), OK
    yield env.get_int(sock, option), 0


@case("10.2")
def reuse_port(env: Env) -> Steps:
    """SO_REUSEPORT is for the internet families only."""
    sock = env.socket()
    yield env.set_int(sock, socket.SO_REUSEPORT, 1), "EOPNOTSUPP"
    yield env.get_int(sock, socket.SO_REUSEPORT), 0


@family("10.2", {"0": (0, OK, 0), "1": (1, OK, 1), "2": (2, "EINVAL", 0), "-1": (-1, "EINVAL", 0)})
def zerocopy(env: Env, value: int, result: str, stored: int) -> Steps:
    """SO_ZEROCOPY is 0 or 1."""
    sock = env.socket()
    old = "EOPNOTSUPP"  # generic code had the option for other families
    if result == OK:
        yield env.set_int(sock, SO_ZEROCOPY, value), since("6.7", result, before=old)
    else:
        yield env.set_int(sock, SO_ZEROCOPY, value), since("6.7", result, before=old)
    yield env.get_int(sock, SO_ZEROCOPY), since("6.7", stored, before=0)


@case("10.2")
def zerocopy_flag_without_the_option(env: Env) -> Steps:
    """MSG_ZEROCOPY without SO_ZEROCOPY is ignored."""
    client, server = env.pair()
    yield do(client.send, b"data", 0x4000000), 4
    yield do(server.recv, 10), b"data"
    yield do(client.recv, 10, 0x2000 | socket.MSG_DONTWAIT), "EAGAIN"


@family("10.2", {"SO_SNDBUF": socket.SO_SNDBUF, "SO_RCVBUF": socket.SO_RCVBUF})
def generic_buffer(env: Env, option: int) -> Steps:
    """SO_SNDBUF and SO_RCVBUF are stored, doubled, and have no effect."""
    sock = env.socket()
    yield env.set_int(sock, option, 20_000), OK
    yield env.get_int(sock, option), 40_000


@case("10.2")
def generic_buffer_means_nothing(env: Env) -> Steps:
    """A tiny SO_SNDBUF or SO_RCVBUF does not make a connection smaller."""
    client, server = env.pair()
    for sock in (client, server):
        yield env.set_int(sock, socket.SO_SNDBUF, 1), OK
        yield env.set_int(sock, socket.SO_RCVBUF, 1), OK
    sent = client.send(bytes(100_000), socket.MSG_DONTWAIT)
    yield sent == 100_000, True, ours("D5", False)
    yield len(env.receive(server, sent)), sent


@case("10.2")
def linger(env: Env) -> Steps:
    """SO_LINGER is stored."""
    sock = env.socket()
    yield do(sock.getsockopt, SOL, socket.SO_LINGER, 8), struct.pack("ii", 0, 0)
    yield do(sock.setsockopt, SOL, socket.SO_LINGER, struct.pack("ii", 1, 7)), OK
    yield do(sock.getsockopt, SOL, socket.SO_LINGER, 8), struct.pack("ii", 1, 7)


@family("10.2", TIMES)
def time_kept(env: Env, level: int, option: int) -> Steps:
    """Timeouts are stored; those of SOL_SOCKET are 0 by default (no limit), the connect timeout is 2 s."""
    sock = env.socket()
    yield env.get_time(sock, level, option), 0.0 if level == SOL else 2.0
    yield env.set_time(sock, level, option, 3.5), OK
    yield env.get_time(sock, level, option), 3.5


@family("10.2", TIMES)
def time_zero(env: Env, level: int, option: int) -> Steps:
    """Zero means the default."""
    sock = env.socket()
    env.set_time(sock, level, option, 5)
    yield env.set_time(sock, level, option, 0), OK
    yield env.get_time(sock, level, option), 0.0 if level == SOL else 2.0


@family(
    "10.1",
    {
        "negative seconds": (-1, 0, "ERANGE"),
        "a whole second of microseconds": (1, 1_000_000, "ERANGE"),
        "too many seconds": (2**62, 0, "ERANGE"),
        "just less than a second": (0, 999_999, OK),
    },
)
def connect_timeout_range(env: Env, seconds: int, micro: int, result: str) -> Steps:
    """An invalid connect timeout is ERANGE."""
    sock = env.socket()
    value = struct.pack("@ll", seconds, micro)
    yield do(sock.setsockopt, AF_VSOCK, CONNECT_TIMEOUT, value), result
    got = env.get_time(sock, AF_VSOCK, CONNECT_TIMEOUT)
    yield (0.999 < got < 1.02) if result == OK else got, True if result == OK else 2.0


@family("10.2", {"a whole second of microseconds": (1, 1_000_000), "-1": (0, -1)})
def timeout_range(env: Env, seconds: int, micro: int) -> Steps:
    """Other invalid timeouts are EDOM."""
    sock = env.socket()
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        yield do(sock.setsockopt, SOL, option, struct.pack("@ll", seconds, micro)), "EDOM"


@case("10.1")
def connect_timeout_of_seqpacket(env: Env) -> Steps:
    """SEQPACKET sockets have it too; both option numbers mean the same timeout."""
    sock = env.socket(SEQPACKET)
    yield env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT_NEW, 9), OK
    yield env.get_time(sock, AF_VSOCK, CONNECT_TIMEOUT), 9.0


@case("10.1")
def connect_timeout_when_connected(env: Env) -> Steps:
    """It can be set at any time."""
    client, server = env.pair()
    for sock in (client, server):
        yield env.set_time(sock, AF_VSOCK, CONNECT_TIMEOUT, 4), OK
        yield env.get_time(sock, AF_VSOCK, CONNECT_TIMEOUT), 4.0


@family("10.1", {"0": 0, "4": 4, "15": 15})
def connect_timeout_short_length(env: Env, length: int) -> Steps:
    """A length that is too short is EINVAL."""
    sock = env.socket()
    value = struct.pack("@ll", 3, 0)[:length]
    yield do(sock.setsockopt, AF_VSOCK, CONNECT_TIMEOUT, value), "EINVAL"
    yield do(env.libc.get_option, sock, AF_VSOCK, CONNECT_TIMEOUT, length), "EINVAL"
    yield env.get_time(sock, AF_VSOCK, CONNECT_TIMEOUT), 2.0


@case("10.1")
def connect_timeout_long_length(env: Env) -> Steps:
    """A longer value is accepted."""
    sock = env.socket()
    value = struct.pack("@ll", 3, 0) + b"\xff" * 8
    yield do(sock.setsockopt, AF_VSOCK, CONNECT_TIMEOUT, value), OK
    yield do(sock.getsockopt, AF_VSOCK, CONNECT_TIMEOUT, 40), value[:16]


@family("10.2", {"int": (socket.SO_RCVLOWAT, 3), "time": (socket.SO_RCVTIMEO, 15), "pair": (13, 7)})
def short_length(env: Env, option: int, length: int) -> Steps:
    """A too short value of a generic option is EINVAL too."""
    sock = env.socket()
    yield do(sock.setsockopt, SOL, option, bytes(length)), "EINVAL"


@family(
    "10.1",
    {
        "a size": (AF_VSOCK, 0),
        "a time": (AF_VSOCK, CONNECT_TIMEOUT),
        "none of this level": (AF_VSOCK, 9),
        "another level": (6, 1),
        "an int": (SOL, socket.SO_REUSEADDR),
    },
    api="a Python value has the length that it has",
)
def negative_length(env: Env, level: int, option: int) -> Steps:
    """A negative length is EINVAL, which is checked first."""
    sock = env.socket()
    for length in (-1, -(2**31)):
        yield do(env.libc.set_option, sock, level, option, bytes(16), length), "EINVAL"


@case("10.2")
def short_room(env: Env) -> Steps:
    """The values of generic options are cut to the given length."""
    sock = env.socket()
    yield do(sock.getsockopt, SOL, socket.SO_TYPE, 2), struct.pack("=H", STREAM)
    yield do(sock.getsockopt, SOL, socket.SO_TYPE, 12), struct.pack("=i", STREAM)


@case("10.2")
def error_is_cleared(env: Env) -> Steps:
    """Reading SO_ERROR clears it, whatever the length."""
    sock = env.socket()
    sock.setblocking(False)
    yield do(sock.connect, env.refused()), "EINPROGRESS"
    env.poll(sock, "OUT")
    yield do(sock.getsockopt, SOL, socket.SO_ERROR), 104
    yield do(sock.getsockopt, SOL, socket.SO_ERROR), 0


@case("10.2")
def type_of_accepted(env: Env) -> Steps:
    """An accepted socket returns its type."""
    _, server = env.pair(SEQPACKET)
    yield env.get_int(server, socket.SO_TYPE), SEQPACKET
    yield env.get_int(server, socket.SO_DOMAIN), AF_VSOCK
    yield env.get_int(server, socket.SO_PROTOCOL), 0

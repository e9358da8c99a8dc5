"""socket(): types and protocols, and the state of a new socket (section 2)."""

import fcntl
import os
import socket

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import AF_VSOCK, ANY, DGRAM, SEQPACKET, STREAM, Env

RAW, RDM, DCCP, PACKET = 3, 4, 6, 10


@family(
    "2",
    {
        "stream": (STREAM, 0, OK),
        "stream, protocol 40": (STREAM, 40, OK),
        "seqpacket": (SEQPACKET, 0, OK),
        "seqpacket, protocol 40": (SEQPACKET, 40, OK),
        "stream, protocol 1": (STREAM, 1, "EPROTONOSUPPORT"),
        "stream, protocol 41": (STREAM, 41, "EPROTONOSUPPORT"),
        "stream, negative protocol": (STREAM, -2, "EPROTONOSUPPORT"),
        "seqpacket, protocol 1": (SEQPACKET, 1, "EPROTONOSUPPORT"),
        "datagram, protocol 1": (DGRAM, 1, "EPROTONOSUPPORT"),
        "raw": (RAW, 0, "ESOCKTNOSUPPORT"),
        "raw, protocol is looked at first": (RAW, 1, "EPROTONOSUPPORT"),
        "reliable datagram": (RDM, 0, "ESOCKTNOSUPPORT"),
        "dccp": (DCCP, 0, "ESOCKTNOSUPPORT"),
        "packet": (PACKET, 0, "ESOCKTNOSUPPORT"),
        "type 0": (0, 0, "ESOCKTNOSUPPORT"),
        "type 11, the first that can be none": (11, 0, "EINVAL"),
        "type 15, protocol 1: type out of range comes first": (15, 1, "EINVAL"),
        "an unknown flag": (STREAM | 0x10000, 0, "EINVAL"),
    },
)
def type_and_protocol(env: Env, kind: int, proto: int, result: str) -> Steps:
    """Types and protocols."""
    yield do(env.socket, kind, proto), result


@case("2")
def datagram_needs_a_transport(env: Env) -> Steps:
    """SOCK_DGRAM is ENODEV without VMCI; this package has datagrams as VMCI does."""
    yield do(env.socket, DGRAM), OK if env.has_datagrams else "ENODEV"


@case("2", api="a class has no socketpair")
def socketpair(env: Env) -> Steps:
    """The family has no socket pairs."""
    yield do(socket.socketpair, AF_VSOCK, STREAM), "EOPNOTSUPP"


@family(
    "2",
    {
        "stream": STREAM,
        "seqpacket": SEQPACKET,
    },
)
def fresh(env: Env, kind: int) -> Steps:
    """A fresh socket has no addresses and no error."""
    sock = env.socket(kind)
    yield do(sock.getsockname), (ANY, ANY)
    yield do(sock.getpeername), "ENOTCONN"
    yield env.get_int(sock, socket.SO_ERROR), 0
    yield env.get_int(sock, socket.SO_TYPE), kind
    yield env.get_int(sock, socket.SO_ACCEPTCONN), 0


@case("10.2")
def domain(env: Env) -> Steps:
    """SO_DOMAIN is AF_VSOCK."""
    yield env.get_int(env.socket(), socket.SO_DOMAIN), AF_VSOCK


@case("10.2")
def protocol(env: Env) -> Steps:
    """SO_PROTOCOL is 0, whichever protocol was given."""
    yield env.get_int(env.socket(), socket.SO_PROTOCOL), 0
    yield env.get_int(env.socket(STREAM, 40), socket.SO_PROTOCOL), 0


@case("2")
def family_attribute(env: Env) -> Steps:
    """Python's attribute `family` is AF_VSOCK."""
    yield int(env.socket().family), AF_VSOCK, ours("D1", api=int(socket.AF_UNIX))


@case("2")
def nonblocking_from_the_start(env: Env) -> Steps:
    """SOCK_NONBLOCK sets O_NONBLOCK."""
    sock = env.socket(STREAM | socket.SOCK_NONBLOCK)
    yield bool(fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK), True
    yield do(sock.connect, env.SILENT), "EINPROGRESS"


@case("2")
def not_inherited_by_programs(env: Env) -> Steps:
    """Python makes its descriptors close-on-exec, accepted ones too."""
    client, server = env.pair()
    for sock in (client, server):
        yield bool(fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC), True


@case("2")
def file_type(env: Env) -> Steps:
    """fstat reports a socket, and lseek fails."""
    sock = env.socket()
    yield os.fstat(sock.fileno()).st_mode >> 12, 0o14
    yield do(os.lseek, sock.fileno(), 0, os.SEEK_CUR), "ESPIPE"


@family(
    "2",
    {
        "bind": ("bind", (1, 2000)),
        "listen": ("listen", 1),
        "connect": ("connect", (1, 2000)),
        "getsockname": ("getsockname",),
        "getpeername": ("getpeername",),
        "send": ("send", b"x"),
        "recv": ("recv", 1),
        "shutdown": ("shutdown", socket.SHUT_RD),
    },
)
def closed(env: Env, method: str, *arguments: object) -> Steps:
    """Every call on a closed socket is EBADF."""
    sock = env.socket()
    sock.close()
    yield do(getattr(sock, method), *arguments), "EBADF"

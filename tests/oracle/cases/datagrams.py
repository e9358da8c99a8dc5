"""SOCK_DGRAM as in VMCI; the reference kernel has no VMCI, so section 8 is the only source."""

import socket
import struct
from typing import Any

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import AF_VSOCK, ANY, DGRAM, LOCAL, MISSING_CID, OWN, SEQPACKET, STREAM, Env

NOT_THERE = "SOCK_DGRAM needs VMCI, which the guest's machine does not have"
NOT_HOOKED = "under vsock run SOCK_DGRAM is what it is without VMCI"
NOW = socket.MSG_DONTWAIT
PEEK = socket.MSG_PEEK
TRUNC = socket.MSG_TRUNC
LONGEST = 69608


def receiver(env: Env) -> tuple[Any, tuple[int, int]]:
    """A bound socket, and its address."""
    sock = env.bound(DGRAM)
    return sock, env.at(sock)


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def fresh(env: Env) -> Steps:
    """A fresh socket has no addresses, and can be written to."""
    sock = env.socket(DGRAM)
    yield do(sock.getsockname), (ANY, ANY)
    yield do(sock.getpeername), "ENOTCONN"
    yield env.get_int(sock, socket.SO_TYPE), DGRAM
    yield env.poll(sock), "OUT", ours("D2a", "OUT|HUP")


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def there_and_back(env: Env) -> Steps:
    """A datagram has its source address."""
    one, first = receiver(env)
    two, second = receiver(env)
    yield do(one.sendto, b"ping", second), 4
    data, source = two.recvfrom(100)
    yield (data, source[1]), (b"ping", first[1])
    yield do(two.sendto, b"pong", source), 4
    yield do(one.recv, 100), b"pong"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def boundaries(env: Env) -> Steps:
    """One recv() returns one datagram."""
    sock, address = receiver(env)
    sender = env.socket(DGRAM)
    for word in (b"one", b"two"):
        sender.sendto(word, address)
    yield do(sock.recv, 100), b"one"
    yield do(sock.recv, 100), b"two"
    yield do(sock.recv, 100, NOW), "EAGAIN"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def sending_binds(env: Env) -> Steps:
    """The first send chooses a port."""
    _, address = receiver(env)
    sender = env.socket(DGRAM)
    yield do(sender.sendto, b"x", address), 1
    yield 1024 <= sender.getsockname()[1] < ANY, True


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def no_destination(env: Env) -> Steps:
    """Without an address and without connect() it is EINVAL."""
    yield do(env.socket(DGRAM).send, b"x"), "EINVAL"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def destination_port_any(env: Env) -> Steps:
    """PORT_ANY is no valid destination."""
    yield do(env.socket(DGRAM).sendto, b"x", (LOCAL, ANY)), "EINVAL"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def destination_cid_any(env: Env) -> Steps:
    """CID_ANY means this machine."""
    sock, address = receiver(env)
    yield do(env.socket(DGRAM).sendto, b"here", (ANY, address[1])), 4
    yield do(sock.recv, 10), b"here"


@family("8", {"local": LOCAL, "own": OWN}, kernel=NOT_THERE, preload=NOT_HOOKED)
def destination_here(env: Env, cid: int) -> Steps:
    """Both CIDs of this machine are valid destinations."""
    sock, address = receiver(env)
    yield do(env.socket(DGRAM).sendto, b"here", (cid, address[1])), 4
    yield do(sock.recv, 10), b"here"


@family(
    "8",
    {"longest": (LONGEST, LONGEST), "too long": (LONGEST + 1, "EMSGSIZE")},
    kernel=NOT_THERE,
    preload=NOT_HOOKED,
)
def length(env: Env, size: int, result: object) -> Steps:
    """The length of datagrams is limited."""
    sock, address = receiver(env)
    yield do(env.socket(DGRAM).sendto, bytes(size), address), result
    if result == size:
        yield len(sock.recv(100_000)), size


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def empty(env: Env) -> Steps:
    """A datagram can be empty."""
    sock, address = receiver(env)
    yield do(env.socket(DGRAM).sendto, b"", address), 0
    yield env.poll(sock, "IN"), "IN|OUT"
    yield do(sock.recv, 10), b""
    yield do(sock.recv, 10, NOW), "EAGAIN"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def short_read(env: Env) -> Steps:
    """Bytes that do not fit are lost, msg_flags has MSG_TRUNC, and the number of copied bytes is returned."""
    sock, address = receiver(env)
    sender = env.socket(DGRAM)
    for _ in range(2):
        sender.sendto(b"0123456789", address)
    data, _, flags, _ = sock.recvmsg(4)
    yield (data, flags & TRUNC), (b"0123", TRUNC)
    yield do(sock.recv_into, bytearray(4), 4, TRUNC), 4


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def peek(env: Env) -> Steps:
    """MSG_PEEK leaves the datagram in the queue."""
    sock, address = receiver(env)
    env.socket(DGRAM).sendto(b"data", address)
    yield do(sock.recv, 100, PEEK), b"data"
    yield do(sock.recv, 100), b"data"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def connected(env: Env) -> Steps:
    """connect() sets the destination of send(), and can be repeated."""
    one, first = receiver(env)
    two, second = receiver(env)
    sender = env.socket(DGRAM)
    for sock, address in ((one, first), (two, second)):
        yield do(sender.connect, address), OK
        yield do(sender.getpeername), address
        yield do(sender.send, b"x"), 1
        yield do(sock.recv, 10), b"x"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def connected_and_an_address(env: Env) -> Steps:
    """An address in the call has priority over the one of connect()."""
    _, first = receiver(env)
    two, second = receiver(env)
    sender = env.socket(DGRAM)
    sender.connect(first)
    yield do(sender.sendto, b"x", second), 1
    yield do(two.recv, 10), b"x"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def connected_hears_others(env: Env) -> Steps:
    """After connect(), datagrams of other sources are still received."""
    sock, address = receiver(env)
    _, other = receiver(env)
    sock.connect(other)
    yield do(env.socket(DGRAM).sendto, b"stranger", address), 8
    yield do(sock.recv, 10), b"stranger"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def own_ports(env: Env) -> Steps:
    """Datagram ports are independent of stream ports."""
    port = env.port()
    for kind in (DGRAM, STREAM):
        yield do(env.socket(kind).bind, (ANY, port)), OK
    yield do(env.socket(DGRAM).bind, (ANY, port)), "EADDRINUSE"
    yield do(env.socket(SEQPACKET).bind, (ANY, port)), "EADDRINUSE"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def chosen_port(env: Env) -> Steps:
    """PORT_ANY chooses one."""
    sock = env.socket(DGRAM)
    yield do(sock.bind, (ANY, ANY)), OK
    yield 1024 <= sock.getsockname()[1] < ANY, True
    yield do(sock.bind, (ANY, env.port())), "EINVAL"


@family("8", {"missing": MISSING_CID, "hypervisor": 0}, kernel=NOT_THERE, preload=NOT_HOOKED)
def bind_elsewhere(env: Env, cid: int) -> Steps:
    """Only local CIDs can be bound."""
    yield do(env.socket(DGRAM).bind, (cid, env.port())), "EADDRNOTAVAIL"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def privileged_port(env: Env) -> Steps:
    """Low ports need the capability for datagrams too."""
    yield env.unprivileged(env.socket(DGRAM).bind, (ANY, 800)), "EACCES"
    yield do(env.socket(DGRAM).bind, (ANY, 800)), OK


@case("2", kernel=NOT_THERE, preload=NOT_HOOKED)
def no_listener(env: Env) -> Steps:
    """listen() is not supported."""
    for sock in (env.socket(DGRAM), env.bound(DGRAM)):
        yield do(sock.listen, 1), "EOPNOTSUPP"
        yield do(sock.accept), "EOPNOTSUPP"


@case("2", kernel=NOT_THERE, preload=NOT_HOOKED)
def options(env: Env) -> Steps:
    """The options of AF_VSOCK are for connections."""
    sock = env.socket(DGRAM)
    for option in (0, 6):
        yield do(sock.setsockopt, AF_VSOCK, option, struct.pack("QQ", 1, 0)), "EOPNOTSUPP"
        yield do(sock.getsockopt, AF_VSOCK, option, 16), "EOPNOTSUPP"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def out_of_band(env: Env) -> Steps:
    """MSG_OOB is not supported."""
    sock, address = receiver(env)
    yield do(env.socket(DGRAM).sendto, b"x", socket.MSG_OOB, address), "EOPNOTSUPP"
    yield do(sock.recv, 1, socket.MSG_OOB), "EOPNOTSUPP"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def shutdown_not_connected(env: Env) -> Steps:
    """It is ENOTCONN, but has its effect."""
    sock, _ = receiver(env)
    yield do(sock.shutdown, socket.SHUT_RD), "ENOTCONN"
    yield env.poll(sock), "IN|OUT|RDHUP"
    yield do(sock.recv, 10), b""


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def nobody_there(env: Env) -> Steps:
    """On the host, sending to an unbound port is an error."""
    sock = env.bound(DGRAM)
    address = env.at(sock)
    sock.close()
    yield do(env.socket(DGRAM).sendto, b"x", address), "EHOSTUNREACH"


@case("8", kernel=NOT_THERE, preload=NOT_HOOKED)
def never_blocks(env: Env) -> Steps:
    """A receiver that does not read loses datagrams; its sender never waits."""
    sock, address = receiver(env)
    sender = env.socket(DGRAM)
    yield {do(sender.sendto, bytes(60_000), address) for _ in range(200)}, {60_000}
    yield len(sock.recv(100_000)), 60_000

"""struct sockaddr_vm: which fields are checked and returned; and local CIDs (section 1)."""

import fcntl

from tests.oracle.case import OK, Steps, case, do, family, ours, since
from tests.oracle.env import (
    AF_VSOCK,
    ANY,
    CONNECT_TIMEOUT,
    GET_LOCAL_CID,
    LOCAL,
    OWN,
    STREAM,
    Env,
)
from tests.oracle.libc import sockaddr

TO_HOST = 1

BAD = {
    "another family": sockaddr(LOCAL, 5000, family=2),
    "family 0": sockaddr(LOCAL, 5000, family=0),
    "one byte short": sockaddr(LOCAL, 5000)[:15],
    "family only": sockaddr(LOCAL, 5000)[:2],
    "nothing": b"",
    "flag 2": sockaddr(LOCAL, 5000, flags=2),
    "flag 0x80": sockaddr(LOCAL, 5000, flags=0x80),
}


@family("1.1", BAD)
def bind_bad_address(env: Env, *address: bytes) -> Steps:
    """bind() with an invalid address is EINVAL, and the socket stays unbound."""
    sock = env.socket()
    yield do(env.libc.bind, sock, address[0]), "EINVAL"
    yield do(sock.getsockname), (ANY, ANY)


@family("1.1", BAD)
def connect_bad_address(env: Env, *address: bytes) -> Steps:
    """connect() to an invalid address is EINVAL, and does not bind the socket."""
    sock = env.socket()
    yield do(env.libc.connect, sock, address[0]), "EINVAL"
    yield do(sock.getsockname), (ANY, ANY)


@case("1.1")
def longer_address(env: Env) -> Steps:
    """Bytes after the first 16 of an address do not matter."""
    sock, port = env.socket(), env.port()
    yield do(env.libc.bind, sock, sockaddr(LOCAL, port) + b"\xff" * 16), OK
    yield do(sock.getsockname), (LOCAL, port)


LENGTHS = {"128": 128, "129": 129, "2^31 - 1": 2**31 - 1, "-1": -1, "-2^31": -(2**31)}


@family("1.1", LENGTHS, api="a Python address has no length")
def longest_address(env: Env, length: int) -> Steps:
    """An address length above 128 or below 0 is EINVAL in every system call and state."""
    sock, connected = env.socket(), env.pair()[0]
    yield (
        do(env.libc.bind_length, sock, sockaddr(LOCAL, env.port()), length),
        OK if length == 128 else "EINVAL",
    )
    again = "EISCONN" if length == 128 else "EINVAL"
    yield do(env.libc.connect_length, connected, sockaddr(LOCAL, 1), length), again
    yield do(env.libc.send_to, connected, b"x", sockaddr(LOCAL, 1), length), again


@case("1.1", api="a Python address has no length")
def address_of_no_length(env: Env) -> Steps:
    """An address of length 0 is no address for sendto(), and too short for connect()."""
    client, server = env.pair()
    yield do(env.libc.send_to, client, b"x", sockaddr(LOCAL, 1), 0), 1
    yield do(server.recv, 10), b"x"
    yield do(env.libc.connect_length, env.socket(), sockaddr(LOCAL, 1), 0), "EINVAL"


@family(
    "1.1",
    {
        "reserved1": {"reserved": 0xFFFF},
        "zero": {"zero": b"\xff\xff\xff"},
        "flag to host": {"flags": TO_HOST},
    },
)
def field_not_kept(env: Env, field: dict[str, int]) -> Steps:
    """Fields that bind() accepts and does not keep."""
    sock, port = env.socket(), env.port()
    yield do(env.libc.bind, sock, sockaddr(LOCAL, port, **field)), OK  # type: ignore[arg-type]
    yield env.libc.name_of("getsockname", sock, 16), (sockaddr(LOCAL, port), 16)


@family("1.1", {"nothing": 0, "4 bytes": 4, "15 bytes": 15, "16 bytes": 16, "40 bytes": 40})
def getsockname_room(env: Env, room: int) -> Steps:
    """getsockname() writes as much as fits, and always returns the length 16."""
    sock = env.bound()
    whole = sockaddr(*sock.getsockname())
    expected = (whole + b"\xee" * 64)[:room] if room >= 16 else whole[:room]
    yield env.libc.name_of("getsockname", sock, room), (expected, 16)


@case("1.1")
def getsockname_negative_room(env: Env) -> Steps:
    """A negative length is EINVAL."""
    yield do(env.libc.name_of, "getsockname", env.socket(), -1), "EINVAL"


@case("1.1")
def getpeername_room(env: Env) -> Steps:
    """getpeername() does the same as getsockname()."""
    client, _ = env.pair()
    whole = sockaddr(*client.getpeername())
    yield env.libc.name_of("getpeername", client, 7), (whole[:7], 16)
    yield env.libc.name_of("getpeername", client, 20), (whole + b"\xee" * 4, 16)


@case("1.1")
def accept_room(env: Env) -> Steps:
    """accept() does the same as getsockname()."""
    listener = env.listener()
    clients = [env.connected_to(listener) for _ in range(2)]
    wholes = [sockaddr(LOCAL, client.getsockname()[1]) for client in clients]
    yield env.libc.name_of("accept", listener, 9), (wholes[0][:9], 16)
    yield env.libc.name_of("accept", listener, 16), (wholes[1], 16)


@case("1.1")
def connect_with_flag_to_host(env: Env) -> Steps:
    """The flag is kept in the peer's address and has no effect on local communication."""
    listener = env.listener()
    address = sockaddr(*env.at(listener), flags=TO_HOST)
    sock = env.socket()
    yield do(env.libc.connect, sock, address), OK
    yield env.libc.name_of("getpeername", sock, 16), (address, 16)


@case("1.3")
def flag_to_host_without_a_way_to_the_host(env: Env) -> Steps:
    """The flag selects the guest's transport to its host, which a host does not have."""
    sock = env.socket()
    yield do(env.libc.connect, sock, sockaddr(*env.SILENT, flags=TO_HOST)), "ENODEV"


@case("1.4")
def local_cid(env: Env) -> Steps:
    """The local CID of a host is 2."""
    yield env.local_cid(), OWN


@case("1.4", api="there is a function instead of an ioctl")
def local_cid_of_a_socket(env: Env) -> Steps:
    """The ioctl is one of /dev/vsock, not of sockets."""
    yield (
        do(fcntl.ioctl, env.socket(), GET_LOCAL_CID, bytes(4)),
        since("6.11", "ENOTTY", before="EOPNOTSUPP"),
    )


@case("1.4")
def both_ends_are_cid_1(env: Env) -> Steps:
    """The source of local communication is CID 1, also if the destination was the machine's own CID."""
    listener = env.listener()
    for cid in (LOCAL, OWN):
        client = env.socket()
        client.connect(env.at(listener, cid))
        server, address = listener.accept()
        env.keep(server)
        yield tuple(address), (LOCAL, client.getsockname()[1])
        yield do(server.getpeername), (LOCAL, client.getsockname()[1])
        yield do(server.getsockname), env.at(listener, cid)
        yield do(client.getpeername), env.at(listener, cid)
        yield client.getsockname()[0], ANY


@family("1.4", {"local": LOCAL, "own": OWN})
def client_bound_to_own_cid(env: Env, cid: int) -> Steps:
    """The connect of a client bound to CID 2 times out: the answer goes to CID 1."""
    listener = env.listener()
    client = env.bound(cid=OWN)
    port = client.getsockname()[1]
    env.set_time(client, AF_VSOCK, CONNECT_TIMEOUT, 0.3)
    yield do(client.connect, env.at(listener, cid)), "ETIMEDOUT", ours("D16", OK)
    yield do(client.getsockname), (OWN, port), ours("D16", (LOCAL, port))


@case("1.4")
def port_numbers_are_unsigned(env: Env) -> Steps:
    """Ports above 2^31 are valid."""
    listener, port = env.socket(STREAM), 0xFFFF0000 + env.port() % 0xFFFF
    listener.bind((ANY, port))
    listener.listen(1)
    client = env.connected_to(listener)
    yield do(client.getpeername), (LOCAL, port)
    yield do(env.accept(listener).getsockname), (LOCAL, port)

"""bind(): valid addresses, conflicts, privilege, and the lifetime of a binding (section 3)."""

import socket

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import ANY, LOCAL, MISSING_CID, OWN, SEQPACKET, SILENT_CID, STREAM, Env


@family(
    "3",
    {
        "any": (ANY, OK),
        "local": (LOCAL, OK),
        "own": (OWN, OK),
        "hypervisor": (0, "EADDRNOTAVAIL"),
        "a guest's": (SILENT_CID, "EADDRNOTAVAIL"),
        "nobody's": (MISSING_CID, "EADDRNOTAVAIL"),
        "largest but any": (ANY - 1, "EADDRNOTAVAIL"),
    },
)
def cid(env: Env, cid: int, result: str) -> Steps:
    """Only local CIDs can be bound, and ANY."""
    sock, port = env.socket(), env.port()
    yield do(sock.bind, (cid, port)), result
    yield do(sock.getsockname), (cid, port) if result == OK else (ANY, ANY)


@case("3")
def after_a_failed_bind(env: Env) -> Steps:
    """After a failed bind another one can succeed."""
    taken, port = env.bound(), env.port()
    sock = env.socket()
    yield do(sock.bind, taken.getsockname()), "EADDRINUSE"
    yield do(sock.bind, (MISSING_CID, port)), "EADDRNOTAVAIL"
    yield do(sock.bind, (ANY, port)), OK


@family("3", {"the same address": None, "another port": 1, "any port": 2, "a bad CID": 3})
def twice(env: Env, what: int | None) -> Steps:
    """A second bind is EINVAL, for any address."""
    sock = env.bound()
    first = sock.getsockname()
    again = {None: first, 1: (ANY, env.port()), 2: (ANY, ANY), 3: (MISSING_CID, 1)}[what]
    yield do(sock.bind, again), "EINVAL"
    yield do(sock.getsockname), first


@case("3")
def when_connected(env: Env) -> Steps:
    """After connect() the socket is bound."""
    client, server = env.pair()
    yield do(client.bind, (ANY, env.port())), "EINVAL"
    yield do(server.bind, (ANY, env.port())), "EINVAL"


@case("3")
def after_a_refused_connect(env: Env) -> Steps:
    """After a failed connect the socket keeps its port."""
    sock = env.socket()
    yield do(sock.connect, env.refused()), "ECONNRESET"
    chosen = sock.getsockname()
    yield chosen[1] != ANY, True
    yield do(sock.bind, (ANY, env.port())), "EINVAL"


@family(
    "3",
    {
        "any and any": (ANY, ANY, "EADDRINUSE"),
        "any and local": (ANY, LOCAL, "EADDRINUSE"),
        "local and any": (LOCAL, ANY, "EADDRINUSE"),
        "local and local": (LOCAL, LOCAL, "EADDRINUSE"),
        "own and any": (OWN, ANY, "EADDRINUSE"),
        "local and own": (LOCAL, OWN, OK),
        "own and local": (OWN, LOCAL, OK),
    },
)
def conflict(env: Env, first: int, second: int, result: str) -> Steps:
    """One port can be bound twice only with two different CIDs that are not ANY."""
    one, two, port = env.socket(), env.socket(), env.port()
    yield do(one.bind, (first, port)), OK
    yield do(two.bind, (second, port)), result


@case("3")
def third_binder_of_a_shared_port(env: Env) -> Steps:
    """If two explicit CIDs have the port, ANY is a conflict."""
    port = env.port()
    for cid, result in ((LOCAL, OK), (OWN, OK), (ANY, "EADDRINUSE")):
        yield do(env.socket().bind, (cid, port)), result


@family("3", {"stream first": (STREAM, SEQPACKET), "seqpacket first": (SEQPACKET, STREAM)})
def one_port_space(env: Env, first: int, second: int) -> Steps:
    """STREAM and SEQPACKET share their ports."""
    taken = env.bound(first)
    yield do(env.socket(second).bind, taken.getsockname()), "EADDRINUSE"


@case("3")
def reuse_address_has_no_effect(env: Env) -> Steps:
    """SO_REUSEADDR can be set and has no effect."""
    one, two, port = env.socket(), env.socket(), env.port()
    for sock in (one, two):
        yield env.set_int(sock, socket.SO_REUSEADDR, 1), OK
    yield do(one.bind, (ANY, port)), OK
    yield do(two.bind, (ANY, port)), "EADDRINUSE"


@case("3")
def free_after_close(env: Env) -> Steps:
    """The port of a closed socket can be bound at once."""
    sock = env.bound()
    address = sock.getsockname()
    sock.close()
    yield do(env.socket().bind, address), OK


@case("3")
def free_after_close_of_a_listener(env: Env) -> Steps:
    """Accepted connections do not hold the listener's port."""
    listener = env.listener()
    address = listener.getsockname()
    client = env.connected_to(listener)
    server = env.accept(listener)
    listener.close()
    again = env.socket()
    yield do(again.bind, address), OK
    yield do(again.listen, 1), OK
    yield do(client.send, b"still"), 5
    yield env.receive(server, 5), b"still"
    second = env.connected_to(again)
    yield do(second.getpeername), (LOCAL, address[1])


@case("3")
def held_by_a_connected_client(env: Env) -> Steps:
    """A client's port is taken as long as the client is open."""
    client, _ = env.pair()
    address = client.getsockname()
    yield do(env.socket().bind, address), "EADDRINUSE"


@case("9.2")
def free_after_close_of_both_ends(env: Env) -> Steps:
    """When both ends of a connection are closed, the client's port is free."""
    client, server = env.pair()
    address = client.getsockname()
    client.close()
    server.close()
    yield env.until(lambda: do(env.socket().bind, address) == OK), True


@case("9.2")
def held_while_the_peer_has_not_read_all(env: Env) -> Steps:
    """A closed client keeps its port while the peer has unread data."""
    client, server = env.pair()
    address = client.getsockname()
    client.send(b"unread")
    client.close()
    env.poll(server, "IN|RDHUP")
    probe = env.socket()
    yield do(probe.bind, address), "EADDRINUSE", ours("D20", OK)
    probe.close()
    yield env.receive(server, 10), b"unread"
    server.close()
    yield env.until(lambda: do(env.socket().bind, address) == OK), True


@family("3", {"port 0": 0, "port 1": 1, "port 22": 22, "port 1023": 1023})
def privileged_port(env: Env, port: int) -> Steps:
    """Ports below 1024 need the capability."""
    yield env.unprivileged(env.socket().bind, (ANY, port)), "EACCES"
    sock = env.socket()
    yield do(sock.bind, (ANY, port)), OK
    yield do(sock.getsockname), (ANY, port)


@case("3")
def first_unprivileged_port(env: Env) -> Steps:
    """Port 1024 needs no capability."""
    yield env.unprivileged(env.socket().bind, (ANY, 1024)), OK


@case("3")
def privilege_before_conflict(env: Env) -> Steps:
    """The capability is checked before the conflict."""
    yield do(env.socket().bind, (ANY, 600)), OK
    yield env.unprivileged(env.socket().bind, (ANY, 600)), "EACCES"


@case("3")
def cid_before_privilege(env: Env) -> Steps:
    """The CID is checked first."""
    yield env.unprivileged(env.socket().bind, (MISSING_CID, 601)), "EADDRNOTAVAIL"


@case("3")
def bound_before_cid(env: Env) -> Steps:
    """An existing binding is checked before the CID."""
    sock = env.bound()
    yield do(sock.bind, (0, 2)), "EINVAL"


@case("3")
def privileged_listener_can_be_reached(env: Env) -> Steps:
    """Connecting to a low port needs no privilege."""
    listener = env.socket()
    listener.bind((ANY, 700))
    listener.listen(1)
    yield env.unprivileged(env.socket().connect, (LOCAL, 700)), OK

"""Ports that the kernel chooses, in bind() and in connect() (section 3)."""

from tests.oracle.case import OK, Steps, case, do, family
from tests.oracle.env import ANY, LOCAL, OWN, SEQPACKET, STREAM, Env

TRIES = 24


def chosen(env: Env, kind: int = STREAM, cid: int = ANY) -> int:
    """A port that bind() has chosen."""
    sock = env.socket(kind)
    sock.bind((cid, ANY))
    port: int = sock.getsockname()[1]
    return port


def after(port: int, steps: int = 1) -> int:
    """The port `steps` after this one; ports wrap to 1024."""
    port += steps
    return port if port < ANY else port - ANY + 1024


@family("3", {"any": ANY, "local": LOCAL, "own": OWN})
def bind_to_any_port(env: Env, cid: int) -> Steps:
    """PORT_ANY chooses a port from 1024 on; the CID stays."""
    sock = env.socket()
    yield do(sock.bind, (cid, ANY)), OK
    ours = sock.getsockname()
    yield ours[0], cid
    yield 1024 <= ours[1] < ANY, True


@case("3")
def consecutive(env: Env) -> Steps:
    """One port after the other, for both types."""
    first = chosen(env)
    yield chosen(env), after(first)
    yield chosen(env, SEQPACKET), after(first, 2)
    yield chosen(env, STREAM, LOCAL), after(first, 3)


@case("3")
def explicit_binds_do_not_count(env: Env) -> Steps:
    """A bind with a port leaves the counter where it is."""
    first = chosen(env)
    yield do(env.socket().bind, (ANY, after(first, 100))), OK
    yield chosen(env), after(first)


@case("3")
def taken_ports_are_skipped(env: Env) -> Steps:
    """The next free port is chosen."""
    first = chosen(env)
    for step in (1, 2):
        env.socket().bind((ANY, after(first, step)))
    yield chosen(env), after(first, 3)


@case("3")
def port_taken_under_another_cid(env: Env) -> Steps:
    """A port bound with one explicit CID is free for another one."""
    first = chosen(env)
    env.socket().bind((OWN, after(first)))
    yield chosen(env, STREAM, LOCAL), after(first)


def take_all_tries(env: Env) -> int:
    """Bind all ports that would be tried next; returns the port before them."""
    first = chosen(env)
    for step in range(1, TRIES + 1):
        env.socket().bind((ANY, after(first, step)))
    return first


@case("3")
def bind_gives_up_after_24(env: Env) -> Steps:
    """If 24 ports in a row are taken it is EADDRNOTAVAIL; the counter has moved on."""
    first = take_all_tries(env)
    sock = env.socket()
    yield do(sock.bind, (ANY, ANY)), "EADDRNOTAVAIL"
    yield do(sock.getsockname), (ANY, ANY)
    yield do(sock.bind, (ANY, ANY)), OK
    yield do(sock.getsockname), (ANY, after(first, TRIES + 1))


@case("3")
def bind_tries_24(env: Env) -> Steps:
    """The 24th port is still tried."""
    first = chosen(env)
    for step in range(1, TRIES):
        env.socket().bind((ANY, after(first, step)))
    yield chosen(env), after(first, TRIES)


@case("5.2")
def connect_gives_up_after_24(env: Env) -> Steps:
    """connect() chooses in the same way."""
    listener = env.listener()
    first = take_all_tries(env)
    sock = env.socket()
    yield do(sock.connect, env.at(listener)), "EADDRNOTAVAIL"
    yield do(sock.getsockname), (ANY, ANY)
    yield do(sock.connect, env.at(listener)), OK
    yield do(sock.getsockname), (ANY, after(first, TRIES + 1))


@case("3")
def connect_takes_the_next(env: Env) -> Steps:
    """A client gets the next port; its CID stays ANY."""
    listener = env.listener()
    first = chosen(env)
    client = env.connected_to(listener)
    yield do(client.getsockname), (ANY, after(first))
    yield chosen(env), after(first, 2)


@case("3")
def accepted_sockets_take_none(env: Env) -> Steps:
    """An accepted socket has the listener's port."""
    listener = env.listener()
    first = chosen(env)
    client = env.connected_to(listener)
    server = env.accept(listener)
    yield server.getsockname()[1], listener.getsockname()[1]
    yield client.getsockname()[1], after(first)
    yield chosen(env), after(first, 2)


@case("3")
def listen_on_a_chosen_port(env: Env) -> Steps:
    """A chosen port can be listened on."""
    listener = env.socket()
    listener.bind((ANY, ANY))
    yield do(listener.listen, 1), OK
    client = env.connected_to(listener)
    yield do(client.getpeername), env.at(listener)


@case("5.2")
def refused_connect_takes_one_port(env: Env) -> Steps:
    """A second try uses the port of the first."""
    first = chosen(env)
    sock = env.socket()
    for _ in range(2):
        yield do(sock.connect, env.refused()), "ECONNRESET"
        yield do(sock.getsockname), (ANY, after(first))
    yield chosen(env), after(first, 2)


@case("5.2")
def connect_to_a_missing_guest(env: Env) -> Steps:
    """For a stream the port is chosen before the guest is looked up, for SEQPACKET it is not."""
    first = chosen(env)
    sock = env.socket()
    yield do(sock.connect, env.MISSING), "ENODEV"
    yield do(sock.getsockname), (ANY, after(first))
    other = env.socket(SEQPACKET)
    yield do(other.connect, env.MISSING), "ESOCKTNOSUPPORT"
    yield do(other.getsockname), (ANY, ANY)


@case("5.2")
def connect_to_the_hypervisor(env: Env) -> Steps:
    """Without a transport to CID 0 no port is chosen."""
    for kind in (STREAM, SEQPACKET):
        sock = env.socket(kind)
        yield do(sock.connect, (0, 99)), "ENODEV"
        yield do(sock.getsockname), (ANY, ANY)

"""close(), and several descriptors of one socket: dup, fork, and programs that end (section 9.2)."""

import os
import select
import socket

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import SEQPACKET, STREAM, Env

KINDS = {"stream": STREAM, "seqpacket": SEQPACKET}
NOW = socket.MSG_DONTWAIT
QUIET = socket.MSG_NOSIGNAL


@case("9.2")
def twice(env: Env) -> Steps:
    """Closing a closed Python socket has no effect."""
    client, _ = env.pair()
    yield do(client.close), OK
    yield do(client.close), OK
    yield client.fileno(), -1


@family("9.2", KINDS)
def peer_sees_it(env: Env, kind: int) -> Steps:
    """The peer's poll() reports it."""
    client, server = env.pair(kind)
    client.close()
    yield env.poll(server, "RDHUP"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")


@family("9.2", KINDS)
def with_unread_data(env: Env, kind: int) -> Steps:
    """Closing with unread data is no error for the peer."""
    client, server = env.pair(kind)
    server.send(b"unread")
    env.poll(client, "IN")
    client.close()
    yield env.poll(server, "RDHUP"), "IN|OUT|RDHUP", ours("D2c", "IN|OUT|HUP|RDHUP")
    yield do(server.recv, 1), b""
    yield env.get_int(server, socket.SO_ERROR), 0


@case("9.2")
def both_at_once(env: Env) -> Steps:
    """Two closes that cross free everything."""
    listener = env.listener()
    client = env.socket()
    client.bind((0xFFFFFFFF, env.port()))
    address = client.getsockname()
    client.connect(env.at(listener))
    server = env.accept(listener)
    client.send(b"x")
    server.send(b"y")
    client.close()
    server.close()
    yield env.until(lambda: do(env.socket().bind, address) == OK), True


@case("9.2")
def duplicate_keeps_it_open(env: Env) -> Steps:
    """A connection lasts as long as one of its descriptors."""
    client, server = env.pair()
    twin = env.keep(client.dup())
    client.close()
    yield do(twin.send, b"still"), 5
    yield do(server.recv, 10), b"still"
    yield env.poll(server), "OUT"
    twin.close()
    yield do(server.recv, 10), b""


@case("9.2")
def duplicate_descriptor(env: Env) -> Steps:
    """Also with a duplicate made by os.dup()."""
    client, server = env.pair()
    twin = os.dup(client.fileno())
    client.close()
    yield do(os.write, twin, b"still"), 5
    yield do(server.recv, 10), b"still"
    os.close(twin)
    yield do(server.recv, 10), b""


@case("9.2")
def duplicate_knows_its_names(env: Env) -> Steps:
    """A duplicate has the same addresses and the same state."""
    client, _ = env.pair()
    twin = env.keep(client.dup())
    yield do(twin.getsockname), client.getsockname()
    yield do(twin.getpeername), client.getpeername()
    yield do(twin.connect, env.refused()), "EISCONN"
    yield do(twin.shutdown, socket.SHUT_WR), OK
    yield do(client.send, b"x", QUIET), "EPIPE"
    yield do(client.getpeername), "ENOTCONN"


@case("9.2")
def duplicate_of_a_listener(env: Env) -> Steps:
    """Both can accept; the port is taken until both are closed."""
    listener = env.listener()
    twin = env.keep(listener.dup())
    address = listener.getsockname()
    clients = [env.connected_to(listener) for _ in range(2)]
    for sock, client in zip((twin, listener), clients, strict=True):
        yield do(env.accept(sock).getpeername)[1], client.getsockname()[1]
    listener.close()
    yield do(env.socket().connect, (1, address[1])), OK
    yield do(env.socket().bind, address), "EADDRINUSE"
    twin.close()
    yield do(env.socket().bind, address), OK


@case("9.2")
def duplicate_of_a_fresh_socket(env: Env) -> Steps:
    """Both descriptors have the same state."""
    sock = env.socket()
    twin = env.keep(sock.dup())
    port = env.port()
    yield do(twin.bind, (1, port)), OK
    yield do(sock.getsockname), (1, port)
    yield do(sock.bind, (1, port)), "EINVAL"
    yield do(sock.listen, 1), OK
    yield do(env.socket().connect, (1, port)), OK
    yield do(env.accept(twin).getsockname), (1, port)


@case("9.2")
def inherited_by_a_child(env: Env) -> Steps:
    """A forked child can use the connection, and its exit does not end the connection."""
    client, server = env.pair()
    yield (
        env.in_child(lambda: (client.send(b"from the child"), list(client.getpeername()))),
        ([14, list(client.getpeername())]),
    )
    yield do(server.recv, 100), b"from the child"
    yield env.poll(server), "OUT"
    yield do(client.send, b"x"), 1


@case("9.2")
def ended_with_its_program(env: Env) -> Steps:
    """A connection of a program that ends is closed."""
    listener = env.listener()
    address = env.at(listener)

    def connect_and_die() -> str:
        sock = env.make_socket(STREAM, 0)
        sock.connect(address)
        sock.send(b"last")
        return "dies"

    yield env.in_child(connect_and_die), "dies"
    server = env.accept(listener)
    yield env.receive(server, 10), b"last"
    yield do(server.recv, 1), b""


@case("9.2")
def child_accepts(env: Env) -> Steps:
    """A listener can be used in a child, as servers that fork do."""
    listener = env.listener()
    client = env.connected_to(listener)
    client.send(b"hello")

    def serve() -> str:
        accepted, _ = listener.accept()
        got: bytes = accepted.recv(10)
        accepted.send(got.upper())
        return "served"

    yield env.in_child(serve), "served"
    yield env.receive(client, 10), b"HELLO"
    yield do(client.recv, 1), b""


@case("9.2")
def detach(env: Env) -> Steps:
    """A detached descriptor stays open without its object."""
    client, server = env.pair()
    fd = client.detach()
    yield client.fileno(), -1
    yield do(os.write, fd, b"x"), 1
    yield do(server.recv, 10), b"x"
    os.close(fd)
    yield do(server.recv, 10), b""


@case("9.2")
def while_another_thread_reads(env: Env) -> Steps:
    """A reader in another thread gets its data although the first thread sleeps in poll()."""
    client, server = env.pair()
    reading = env.background(lambda: client.recv(10))
    poll = select.poll()
    poll.register(server.fileno(), select.POLLIN)
    yield poll.poll(0), []
    server.send(b"woken")
    yield reading(), b"woken"


@case("9.2")
def exceptions_of_a_context(env: Env) -> Steps:
    """`with` closes the socket."""
    client, server = env.pair()
    with client:
        client.send(b"x")
    yield do(server.recv, 10), b"x"
    yield do(server.recv, 10), b""
    yield do(client.recv, 1, NOW), "EBADF"

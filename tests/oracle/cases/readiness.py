"""Other calls than poll(): select, epoll, selectors, asyncio; and low water marks (section 9.4)."""

import asyncio
import select
import selectors
import socket

from tests.oracle.case import OK, Steps, case, do, family, ours
from tests.oracle.env import SEQPACKET, STREAM, Env

NOW = socket.MSG_DONTWAIT
IN, OUT, RDHUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP
LONG = 3


@case("9.4")
def select_call(env: Env) -> Steps:
    """select() reports the same as poll()."""
    client, server = env.pair()
    yield select.select([client], [client], [client], 0), ([], [client], [])
    server.send(b"x")
    yield select.select([client], [], [], LONG), ([client], [], [])
    yield select.select([client], [client], [client], 0), ([client], [client], [])


@case("9.4")
def select_of_a_peer_that_closed(env: Env) -> Steps:
    """An end of file is readable."""
    client, server = env.pair()
    server.close()
    yield select.select([client], [], [], LONG), ([client], [], [])


@case("9.4")
def level_triggered_epoll(env: Env) -> Steps:
    """epoll() reports data until it is read."""
    client, server = env.pair()
    with select.epoll() as epoll:
        epoll.register(client, IN)
        yield epoll.poll(0), []
        server.send(b"xy")
        for _ in range(2):
            yield epoll.poll(LONG), [(client.fileno(), IN)]
        client.recv(2)
        yield epoll.poll(0), []


@case("9.4")
def edge_triggered_epoll(env: Env) -> Steps:
    """With EPOLLET it reports each arrival once."""
    client, server = env.pair()
    with select.epoll() as epoll:
        epoll.register(client, IN | select.EPOLLET)
        yield epoll.poll(0), []
        for _ in range(2):
            server.send(b"x")
            yield epoll.poll(LONG), [(client.fileno(), IN)]
            yield epoll.poll(0), []


@case("9.4")
def one_shot_epoll(env: Env) -> Steps:
    """With EPOLLONESHOT it reports one event until it is armed again."""
    client, server = env.pair()
    with select.epoll() as epoll:
        epoll.register(client, IN | select.EPOLLONESHOT)
        server.send(b"x")
        yield epoll.poll(LONG), [(client.fileno(), IN)]
        yield epoll.poll(0), []
        epoll.modify(client, IN | select.EPOLLONESHOT)
        yield epoll.poll(LONG), [(client.fileno(), IN)]


@case("9.4")
def epoll_of_a_listener(env: Env) -> Steps:
    """A listener that was registered before it listened reports connections."""
    listener = env.bound()
    with select.epoll() as epoll:
        epoll.register(listener, IN)
        listener.listen(1)
        yield epoll.poll(0), []
        env.connected_to(listener)
        yield epoll.poll(LONG), [(listener.fileno(), IN)]


@case("9.4")
def epoll_of_an_attempt(env: Env) -> Steps:
    """A socket that was registered before connect() reports that it is connected."""
    listener, sock = env.listener(), env.socket()
    sock.setblocking(False)
    with select.epoll() as epoll:
        epoll.register(sock, OUT)
        yield do(sock.connect, env.at(listener)), "EINPROGRESS"
        yield epoll.poll(LONG), [(sock.fileno(), OUT)]
        yield env.get_int(sock, socket.SO_ERROR), 0
        yield do(sock.getpeername), env.at(listener)


@case("9.4")
def epoll_of_a_peer_that_closes(env: Env) -> Steps:
    """EPOLLRDHUP is reported if it is requested."""
    client, server = env.pair()
    with select.epoll() as epoll:
        epoll.register(client, RDHUP)
        yield epoll.poll(0), []
        server.close()
        with_hangup = [(client.fileno(), RDHUP | select.EPOLLHUP)]
        yield epoll.poll(LONG), [(client.fileno(), RDHUP)], ours("D2c", with_hangup)


@case("9.4")
def selector(env: Env) -> Steps:
    """The selectors module works with them."""
    client, server = env.pair()
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, "data")
        yield selector.select(0), []
        server.send(b"x")
        yield [key.data for key, _ in selector.select(LONG)], ["data"]


@case("5.3")
def event_loop(env: Env) -> Steps:
    """asyncio's socket calls work with them."""
    listener, client = env.listener(), env.socket()
    for sock in (listener, client):
        sock.setblocking(False)

    async def talk() -> bytes:
        loop = asyncio.get_running_loop()
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(client, env.at(listener))
        server, _ = await accepting
        env.keep(server)
        await loop.sock_sendall(client, b"question")
        got = await loop.sock_recv(server, 100)
        await loop.sock_sendall(server, got.upper())
        return await loop.sock_recv(client, 100)

    yield do(asyncio.run, asyncio.wait_for(talk(), LONG)), b"QUESTION"


@case("5.3")
def event_loop_refused(env: Env) -> Steps:
    """A refused sock_connect() raises the errno."""
    sock = env.socket()
    sock.setblocking(False)

    async def attempt() -> None:
        await asyncio.get_running_loop().sock_connect(sock, env.refused())

    yield do(asyncio.run, asyncio.wait_for(attempt(), LONG)), "ECONNRESET"


@family("6.4", {"stream": STREAM, "seqpacket": SEQPACKET})
def low_water(env: Env, kind: int) -> Steps:
    """A connection is readable from SO_RCVLOWAT bytes on, in any number of sends."""
    client, server = env.pair(kind)
    yield env.set_int(server, socket.SO_RCVLOWAT, 10), OK
    client.send(b"12345")
    env.arrived(server, 5)
    yield env.poll(server), "OUT", ours("D3", "IN|OUT")
    client.send(b"67890")
    yield env.poll(server, "IN"), "IN|OUT"


@case("6.4")
def low_water_set_afterwards(env: Env) -> Steps:
    """After the mark is raised, the present data no longer makes the socket readable."""
    client, server = env.pair()
    client.send(b"12345")
    yield env.poll(server, "IN"), "IN|OUT"
    yield env.set_int(server, socket.SO_RCVLOWAT, 6), OK
    yield env.poll(server), "OUT", ours("D3", "IN|OUT")
    yield env.set_int(server, socket.SO_RCVLOWAT, 5), OK
    yield env.poll(server), "IN|OUT"


@case("6.4")
def low_water_and_the_end(env: Env) -> Steps:
    """The end is readable whatever the mark."""
    client, server = env.pair()
    yield env.set_int(server, socket.SO_RCVLOWAT, 10), OK
    client.send(b"12345")
    client.shutdown(socket.SHUT_WR)
    yield env.poll(server, "RDHUP"), "IN|OUT|RDHUP"


@case("9.4")
def writable_again(env: Env) -> Steps:
    """A full connection becomes writable when the peer has read."""
    client, server = env.pair()
    sent = env.fill(client, 16384)
    yield env.poll(client), "nothing"
    reading = env.background(lambda: env.receive(server, sent))
    yield env.poll(client, "OUT"), "OUT"
    yield len(reading()), sent

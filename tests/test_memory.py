"""`vsock.testing.MemoryTransport`: programs that use sockets, without a switch."""

import asyncio
import errno
import os
import select
import socket
import threading
from collections.abc import Callable

import pytest
import uvloop

import vsock
from vsock import CID_ANY, CID_HOST, CID_LOCAL, PORT_ANY, ConnectRefused, NoSuchGuest, UsageError
from vsock.testing import MemoryTransport

PORT = 80
KINDS = pytest.mark.parametrize("kind", [vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET])


@pytest.fixture
def host() -> MemoryTransport:
    """The host of a memory network."""
    return MemoryTransport()


@pytest.fixture
def web(host: MemoryTransport) -> MemoryTransport:
    """The guest `web` (3) of the network."""
    return host.guest("web", 3)


@pytest.fixture(autouse=True)
def no_switch(runtime_dir):
    """A runtime directory without a switch."""
    yield
    assert not list(runtime_dir.iterdir())


@KINDS
@pytest.mark.parametrize("address", ["web:80", (3, PORT), vsock.Address(3, PORT)])
def test_connection_has_the_addresses_that_a_switch_would_give(host, web, address, kind):
    """It carries data in both directions, with a half-close."""
    with vsock.create_server(PORT, type=kind, transport=web) as listener:
        assert listener.getsockname() == (CID_ANY, PORT)
        with vsock.create_connection(address, 5, type=kind, transport=host) as ours:
            theirs, peer = listener.accept()
            with theirs:
                assert (ours.gettimeout(), theirs.gettimeout()) == (5, None)
                assert peer == theirs.getpeername() == (CID_HOST, ours.getsockname().port)
                assert theirs.getsockname() == ours.getpeername() == (3, PORT)
                assert ours.getsockname().cid == CID_ANY
                ours.sendall(b"question")
                assert theirs.recv(100) == b"question"
                ours.shutdown(socket.SHUT_WR)
                assert theirs.recv(100) == b""
                theirs.sendall(bytes(100_000))
                theirs.close()
                assert len(b"".join(iter(lambda: ours.recv(1 << 20), b""))) == 100_000
    for sock in (listener, ours, theirs):
        assert isinstance(sock, vsock.socket)


def test_message_longer_than_the_buffers_is_refused(host, web):
    """EMSGSIZE, as over a switch; a shorter one arrives whole."""
    with vsock.create_server(PORT, type=vsock.SOCK_SEQPACKET, transport=web) as listener:
        with vsock.create_connection((3, PORT), type=vsock.SOCK_SEQPACKET, transport=host) as ours:
            theirs, _ = listener.accept()
            with theirs:
                with pytest.raises(OSError, match="too long"):
                    ours.send(bytes(262145))
                ours.sendmsg([bytes(200_000)], (), socket.MSG_EOR)
                data, _, flags, _ = theirs.recvmsg(1 << 20)
                assert (len(data), flags & socket.MSG_EOR) == (200_000, socket.MSG_EOR)


def test_machines_are_reached_by_cid_and_name_and_others_are_no_such_guest(host, web):
    """From each machine to each; an unknown name and an unknown CID are errors."""
    db = host.guest("db", 4)
    with vsock.create_server(PORT, transport=db), vsock.create_server(PORT, transport=host):
        for source, address in ((host, "db:80"), (web, "db:80"), (web, "host:80"), (db, (2, PORT))):
            vsock.create_connection(address, transport=source).close()
        with pytest.raises(NoSuchGuest, match="guest 'nobody'"):
            vsock.create_connection("nobody:80", transport=host)
        with pytest.raises(NoSuchGuest, match="connect to 5:80"):
            vsock.create_connection((5, PORT), transport=host)
    assert [vsock.get_local_cid(transport=machine) for machine in (host, web, db)] == [2, 3, 4]


def test_loopback_is_seen_as_cid_1(host):
    """Connected by CID 1 and by the machine's own CID."""
    with vsock.create_server(PORT, transport=host) as listener:
        for cid in (CID_LOCAL, CID_HOST):
            with vsock.create_connection((cid, PORT), transport=host) as ours:
                theirs, peer = listener.accept()
                theirs.close()
                assert (peer.cid, theirs.fileno(), ours.getpeername()) == (1, -1, (cid, PORT))


def test_port_without_a_listener_of_this_kind_refuses(host, web):
    """No listener, another type, a listener on another CID, or a closed one."""
    with vsock.create_server(PORT, type=vsock.SOCK_SEQPACKET, transport=web):
        with pytest.raises(ConnectRefused):
            vsock.create_connection("web:80", transport=host)
        with pytest.raises(ConnectRefused):
            vsock.create_connection("web:81", transport=host)
    with pytest.raises(ConnectRefused) as caught:
        vsock.create_connection("web:80", type=vsock.SOCK_SEQPACKET, transport=host)
    assert caught.value.errno == errno.ECONNRESET
    with vsock.create_server((CID_LOCAL, PORT), transport=web):
        vsock.create_connection((CID_LOCAL, PORT), transport=web).close()
        with pytest.raises(ConnectRefused):
            vsock.create_connection("web:80", transport=host)


def test_backlog_counts_connections_that_were_not_accepted(host, web):
    """`backlog` + 1 connections, also after a change."""

    def connect() -> socket.socket:
        return vsock.create_connection("web:80", transport=host)

    with vsock.create_server(PORT, backlog=0, transport=web) as listener, connect():
        with pytest.raises(ConnectRefused):
            connect()
        listener.accept()[0].close()
        with connect(), pytest.raises(ConnectRefused):
            connect()
        listener.listen(1)
        with connect(), pytest.raises(ConnectRefused):
            connect()


def test_longest_backlog_fits(host, web):
    """64 connections wait, and each is accepted with its own data."""
    with vsock.create_server(PORT, backlog=4096, transport=web) as listener:
        ours = [vsock.create_connection("web:80", transport=host) for _ in range(64)]
        with pytest.raises(ConnectRefused):
            vsock.create_connection("web:80", transport=host)
        for number, sock in enumerate(ours):
            sock.sendall(b"%d" % number)
        for number, sock in enumerate(ours):
            theirs, _ = listener.accept()
            assert theirs.recv(10) == b"%d" % number
            theirs.close()
            sock.close()


def test_port_is_taken_until_its_listener_is_closed(host, web):
    """EADDRINUSE on the same machine, free on another; PORT_ANY chooses another port."""
    with vsock.create_server(PORT, transport=web):
        with pytest.raises(OSError, match="bind any:80") as caught:
            vsock.create_server(PORT, transport=web)
        assert caught.value.errno == errno.EADDRINUSE
        vsock.create_server(PORT, transport=host).close()
        with vsock.create_server(PORT_ANY, transport=web) as other:
            assert other.getsockname().port >= 1024
        with pytest.raises(OSError, match="this machine has CID 3") as caught:
            vsock.create_server((4, 81), transport=web)
        assert caught.value.errno == errno.EADDRNOTAVAIL
    vsock.create_server(PORT, transport=web).close()


def test_source_address_is_what_the_other_side_sees(host, web):
    """A client may choose its port."""
    with vsock.create_server(PORT, transport=web) as listener:
        source = (CID_ANY, 6000)
        with vsock.create_connection("web:80", source_address=source, transport=host) as ours:
            theirs, peer = listener.accept()
            theirs.close()
            assert (ours.getsockname(), peer) == (source, (CID_HOST, 6000))
        with pytest.raises(OSError, match="has CID 2"):
            vsock.create_connection("web:80", source_address=(9, 1), transport=host)


def test_options_of_a_listener_are_inherited(host, web):
    """With their values when a connection arrives."""
    with vsock.create_server(PORT, transport=web) as listener:
        listener.setsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_SIZE, (65536).to_bytes(8, "little"))
        with vsock.create_connection("web:80", transport=host):
            theirs, _ = listener.accept()
            with theirs:
                assert theirs.getsockopt(40, vsock.SO_VM_SOCKETS_BUFFER_SIZE) == 65536


def test_listener_waits_in_poll_and_with_a_timeout(host, web):
    """It is a real descriptor; a thread that accepts is woken by a connection."""
    with vsock.create_server(PORT, transport=web) as listener:
        assert not select.select([listener], [], [], 0)[0]
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.settimeout(30)
        accepted: list[socket.socket] = []
        thread = threading.Thread(target=lambda: accepted.append(listener.accept()[0]))
        thread.start()
        with vsock.create_connection("web:80", transport=host):
            thread.join(30)
        accepted[0].close()


def test_forked_server_accepts(host, web):
    """The listener is the same in both processes."""
    with vsock.create_server(PORT, transport=web) as listener:
        child = os.fork()
        if child == 0:
            theirs, _ = listener.accept()
            theirs.sendall(b"from the child")
            os._exit(0)
        with vsock.create_connection("web:80", transport=host) as ours:
            assert ours.recv(100) == b"from the child"
            assert ours.recv(100) == b""
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_asyncio_verbs_work_in_each_loop(
    host, web, new_loop: Callable[[], asyncio.AbstractEventLoop]
):
    """Streams in both directions, and a refusal."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async def main() -> None:
        async with await vsock.start_server(shout, PORT, transport=web):
            reader, writer = await vsock.open_connection("web:80", transport=host)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"HELLO"
            writer.close()
            await writer.wait_closed()
            with pytest.raises(ConnectRefused):
                await vsock.open_connection("web:81", transport=host)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_what_there_is_not_is_said(host, web):
    """Errors: sockets without the verbs, datagrams, addresses of other transports, a second machine with the same CID or name."""
    with pytest.raises(UsageError, match="create_connection, create_server"):
        vsock.socket(transport=host)
    for call in (vsock.create_connection, vsock.create_server):
        with pytest.raises(OSError, match="Socket type not supported"):
            call("web:80", type=vsock.SOCK_DGRAM, transport=host)
    for name, cid in (
        ("web", 4),
        ("other", 3),
        ("other", 2),
        ("other", 1),
        ("other", 1 << 32),
        ("host", 5),
    ):
        with pytest.raises(UsageError):
            host.guest(name, cid)

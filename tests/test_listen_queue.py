"""A2: `backlog` + 1 connections wait to be accepted, however long the queue (crates/node/tests/node_backlog.rs)."""

import subprocess
import sys
from contextlib import ExitStack

import pytest

import vsock
from vsock import SOCK_SEQPACKET, SOCK_STREAM

PORT = 5000
BACKLOG = 300
"""More connections than fit a Unix socket as messages with descriptors."""


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET])
@pytest.mark.parametrize("listens", ["host", "guest"])
@pytest.mark.parametrize("connects", ["host", "guest"])
def test_queue_is_as_long_as_asked_for(switch, guest, listens, connects, kind):
    """None of them is refused, the next one is, and each is accepted with the data that it has sent."""
    transports = {"host": switch.transport, "guest": guest.transport}
    cid = {"host": vsock.CID_HOST, "guest": guest.cid}[listens]
    address = (cid, PORT)
    where = {"transport": transports[connects], "type": kind}
    waiting = []
    with vsock.create_server(
        PORT, backlog=BACKLOG, transport=transports[listens], type=kind
    ) as listener:
        for number in range(BACKLOG + 1):
            waiting.append(vsock.create_connection(address, **where))
            waiting[-1].sendall(b"%d" % number)
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection(address, **where)
        for number, client in enumerate(waiting):
            accepted, peer = listener.accept()
            with accepted, client:
                assert peer[1] == client.getsockname()[1]
                assert accepted.recv(100) == b"%d" % number


UNDER_RUN = f"""
import socket, sys
listener = socket.socket(socket.AF_VSOCK)
listener.bind((socket.VMADDR_CID_ANY, {PORT}))
listener.listen({BACKLOG})
print("listening", flush=True)
sys.stdin.readline()
print(*(listener.accept()[0].recv(100).decode() for _ in range(10)), flush=True)
sys.stdin.readline()
"""


def test_queue_of_a_program_under_vsock_run_is_as_long(switch, start_preloaded):
    """An unmodified program accepts a few; the others go on waiting."""
    program = start_preloaded(sys.executable, "-c", UNDER_RUN, stdin=subprocess.PIPE)
    assert program.stdout.readline() == "listening\n"
    with ExitStack() as waiting:
        for number in range(BACKLOG + 1):
            client = waiting.enter_context(vsock.create_connection((vsock.CID_HOST, PORT)))
            client.sendall(b"%d" % number)
        with pytest.raises(vsock.ConnectRefused):
            vsock.create_connection((vsock.CID_HOST, PORT))
        program.stdin.write("accept\n")
        program.stdin.flush()
        assert program.stdout.readline().split() == [str(number) for number in range(10)]
        assert client.send(b"still open") == 10
        program.communicate("end\n", timeout=20)
        assert client.recv(1) == b""

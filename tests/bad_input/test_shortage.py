"""A switch without free descriptors: new programs wait until there is one, existing connections go on."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.bad_input.lab import DEADLINE, ECHO, Lab
from tests.bad_input.raw import ANY, REQUESTS, ask, dial, name, reply

import vsock
from vsock._client import Op, Request

PORT = 7400
MANY = 40


@contextmanager
def shortage(lab: Lab, left: int) -> Iterator[None]:
    """Lets the switch open `left` more descriptors."""
    pid = lab.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # open returns the lowest free number, and there may be gaps.
    used = lab.descriptors()
    free = (number for number in range(before[1]) if number not in used)
    limit = [next(free) for _ in range(left + 1)][-1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("door", ["stream", "seqpacket", "dgram"])
@pytest.mark.parametrize("relief", ["others leave", "the limit is raised"])
def test_programs_wait_for_a_descriptor(lab: Lab, door: str, relief: str) -> None:
    """None is refused, and all are answered when descriptors are free."""
    with ExitStack() as clients:
        with shortage(lab, 10):
            early = [clients.enter_context(dial(lab, door)) for _ in range(10)]
            for client in early:
                assert ask(client, REQUESTS["LOCAL_CID"]) == "OK"
            late = [clients.enter_context(dial(lab, door)) for _ in range(MANY)]
            for client in late:
                client.sendall(REQUESTS["LOCAL_CID"])
            lab.wait_for_line("accepting a program: Too many open files")
            assert ask(early[0], REQUESTS["LOCAL_CID"]) == "OK"
            if relief == "others leave":
                for client in (*early, *late):
                    if client in late:
                        assert name(reply(client)) == "OK"
                    client.close()
                return
        for client in late:
            assert name(reply(client)) == "OK"


def test_connections_of_a_guest_are_refused_without_a_descriptor(lab: Lab) -> None:
    """With ECONNRESET; the listener's queue keeps its length, and other connections go on."""
    with dial(lab, "stream") as listener, vsock.create_connection((3, ECHO)) as going_on:
        for request in (Request(Op.BIND, ANY, PORT), Request(Op.LISTEN, value=1)):
            assert ask(listener, request.encode()) == "OK"
        with shortage(lab, 0):
            for _ in range(5):
                with pytest.raises(vsock.ConnectRefused):
                    lab.guest.create_connection((2, PORT), DEADLINE)
            going_on.sendall(b"still here")
            assert going_on.recv(100) == b"still here"
        for _ in range(2):
            with lab.guest.create_connection((2, PORT), DEADLINE):
                _, fds, _, _ = socket.recv_fds(listener, 64, 1)
                socket.close(fds[0])
                listener.sendall(Request(Op.ACCEPTED).encode())


def test_hybrid_programs_wait_for_a_descriptor(lab: Lab) -> None:
    """As programs on the node's sockets do."""
    with ExitStack() as stack, shortage(lab, 3):
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(MANY)]
        for client in clients:
            client.settimeout(DEADLINE)
            client.connect(str(lab.directory / "guests/alpha.vsock"))
            client.sendall(f"CONNECT {ECHO}\n".encode())
        lab.wait_for_line("accepting a program: Too many open files")
        for client in clients:
            with client.makefile("r") as file:
                assert file.readline().startswith("OK")
            client.close()

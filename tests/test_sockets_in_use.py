"""`vsock.socket` in libraries that use sockets: it must work as any real descriptor."""

import copy
import os
import pickle
import selectors
import socket
import ssl
import subprocess
import sys
import threading

import pytest

import vsock

PORT = 5000


@pytest.fixture
def pair(guest):
    """A connection: the host program's end and the guest's."""
    with guest.create_server(PORT) as listener, vsock.create_connection((3, PORT)) as ours:
        theirs, _ = listener.accept()
        with theirs:
            yield ours, theirs


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of file."""
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


def test_connection_given_to_a_subprocess_is_its_standard_input_and_output(pair):
    """A child process can have the connection as its descriptors 0 and 1."""
    ours, theirs = pair
    program = "import sys; print(sys.stdin.read().upper(), end='')"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=ours, stdout=ours)
    ours.close()
    theirs.sendall(b"shout")
    theirs.shutdown(socket.SHUT_WR)
    assert read_all(theirs) == b"SHOUT"
    assert child.wait(30) == 0


def test_connection_given_a_file_sends_it(pair, tmp_path):
    """sendfile works, as on every stream socket."""
    ours, theirs = pair
    content = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(content)
    received = []
    reader = threading.Thread(target=lambda: received.append(read_all(theirs)))
    reader.start()
    with (tmp_path / "file").open("rb") as file:
        assert ours.sendfile(file) == len(content)
    ours.close()
    reader.join(30)
    assert received == [content]


def test_connection_wrapped_by_ssl_carries_tls(pair):
    """ssl.SSLContext.wrap_socket takes it, on both sides."""
    ours, theirs = pair
    contexts = {}
    for side in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = contexts[side] = ssl.SSLContext(side)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")  # needs no certificate

    def serve():
        with contexts[ssl.PROTOCOL_TLS_SERVER].wrap_socket(theirs, server_side=True) as secure:
            secure.sendall(secure.recv(100).upper())

    server = threading.Thread(target=serve)
    server.start()
    with contexts[ssl.PROTOCOL_TLS_CLIENT].wrap_socket(ours) as secure:
        secure.sendall(b"secret")
        assert secure.recv(100) == b"SECRET"
    server.join(30)


def test_connection_made_a_file_reads_lines(pair):
    """makefile gives buffered files over it."""
    ours, theirs = pair
    with theirs.makefile("rw") as theirs_file, ours.makefile("rw") as ours_file:
        ours_file.write("one\ntwo\n")
        ours_file.flush()
        assert [theirs_file.readline(), theirs_file.readline()] == ["one\n", "two\n"]


def test_connection_in_a_selector_is_ready_when_it_should_be(pair):
    """A selector reports it, and its descriptor never changes."""
    ours, theirs = pair
    with selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        assert selector.select(0) == []
        theirs.send(b"x")
        assert [key.fileobj for key, _ in selector.select(5)] == [ours]


def test_socket_that_connects_keeps_its_descriptor(guest):
    """A descriptor registered before connect is the one that connects."""
    with guest.create_server(PORT), vsock.socket() as sock:
        number = sock.fileno()
        assert number >= 0
        sock.connect((3, PORT))
        assert sock.fileno() == number


def test_duplicate_of_a_connection_lives_on(pair):
    """dup returns a second socket with the same addresses; detach releases the descriptor."""
    ours, theirs = pair
    twin = ours.dup()
    assert (type(twin), twin.getpeername()) == (type(ours), ours.getpeername())
    assert isinstance(twin, vsock.socket)
    ours.close()
    number = twin.detach()
    assert twin.fileno() == -1
    with socket.socket(fileno=number) as plain:
        plain.sendall(b"still here")
        assert theirs.recv(100) == b"still here"


def test_socket_copied_or_pickled_raises():
    """A socket cannot be copied."""
    with vsock.socket() as sock:
        with pytest.raises(TypeError):
            pickle.dumps(sock)
        with pytest.raises(TypeError):
            copy.copy(sock)


def test_socket_printed_says_where_it_is(pair):
    """The repr names both addresses."""
    assert repr(pair[0]).startswith("<vsock.socket ")
    assert "raddr=3:5000" in repr(pair[0])


def test_many_bytes_sent_both_ways_at_once_arrive(pair):
    """Four MiB in each direction at the same time arrive whole and in order."""
    content = os.urandom(1 << 22)
    received = {}

    def send(sock):
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)

    def receive(sock):
        received[sock] = read_all(sock)

    threads = [threading.Thread(target=do, args=(end,)) for end in pair for do in (send, receive)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert [received.get(end) == content for end in pair] == [True, True]

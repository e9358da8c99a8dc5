"""`vsock.socket` is one class for its users: every kind of socket is an instance, and users can subclass it."""

import errno
import socket
from typing import Any

import pytest

import vsock
from vsock import SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, UsageError

PORT = 5000


class Loud(vsock.socket):
    """A user's subclass: with slots and a method of its own, and two overridden calls."""

    __slots__ = ("calls",)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.calls: list[str] = []

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receive, in upper case."""
        return super().recv(bufsize, flags).upper()

    def bind(self, address: Any) -> None:
        """Bind, and remember it."""
        self.calls.append("bind")
        super().bind(address)


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM])
def test_socket_of_each_type_is_an_instance_and_says_so(runtime_dir, kind):
    """Its type tells which kind it is."""
    with vsock.socket(kind) as sock, sock.dup() as twin:
        assert isinstance(sock, vsock.socket)
        assert type(twin) is type(sock)
        assert (sock.type, type(sock).__name__) == (kind, "socket")
        assert repr(sock).startswith("<vsock.socket ")


@pytest.mark.parametrize("kind", [SOCK_STREAM, SOCK_SEQPACKET])
def test_class_of_a_user_has_the_calls_of_connections(switch, kind):
    """By super(), for every type; accepted and duplicated sockets are plain ones."""
    with Loud(kind) as listener:
        assert isinstance(listener, Loud)
        assert type(listener).__name__ == "Loud"
        listener.bind((vsock.CID_ANY, PORT))
        listener.listen()
        with Loud(kind) as ours:
            ours.connect((vsock.CID_LOCAL, PORT))
            theirs, _ = listener.accept()
            with theirs:
                theirs.send(b"hello")
                assert ours.recv(10) == b"HELLO"
            again = Loud.from_fd(ours.dup().detach())
            with again:
                assert isinstance(again, Loud)
                assert again.getpeername() == (vsock.CID_LOCAL, PORT)
        assert listener.calls == ["bind"]


def test_class_of_a_user_has_the_calls_of_datagrams(switch):
    """Calls that datagram sockets do not support fail as in the kernel."""
    with Loud(SOCK_DGRAM) as receiver, vsock.socket(SOCK_DGRAM) as sender:
        receiver.bind((vsock.CID_ANY, PORT))
        sender.sendto(b"hello", (vsock.CID_HOST, PORT))
        assert receiver.recv(10) == b"HELLO"
        for call in (receiver.listen, receiver.accept):
            with pytest.raises(OSError, match="not supported") as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP


def test_class_of_a_user_may_begin_by_the_name_of_its_base(switch):
    """It can choose the type itself, if that is a type with connections."""

    class Messages(vsock.socket):
        def __init__(self) -> None:
            vsock.socket.__init__(self, SOCK_SEQPACKET)

    class Datagrams(vsock.socket):
        def __init__(self) -> None:
            vsock.socket.__init__(self, SOCK_DGRAM)

    with Messages() as sock:
        assert sock.type == SOCK_SEQPACKET
        sock.bind((vsock.CID_ANY, PORT))
    with pytest.raises(UsageError, match="Datagrams: this type or transport must be given"):
        Datagrams()


def test_class_of_a_socket_makes_others_of_its_kind_only(runtime_dir):
    """A type(sock) is no factory."""
    with vsock.socket() as sock, type(sock)(SOCK_SEQPACKET) as other:
        assert other.type == SOCK_SEQPACKET
        with pytest.raises(UsageError, match="no class for sockets of this type"):
            type(sock)(SOCK_DGRAM)


def test_connections_of_all_transports_are_instances(guest, tmp_path, monkeypatch):
    """Unix sockets too."""
    monkeypatch.chdir(tmp_path)
    with vsock.create_server("unix:s") as listener, vsock.create_connection("unix:s") as ours:
        assert isinstance(ours, vsock.socket)
        listener.accept()[0].close()
    with guest.create_server(PORT) as server, vsock.create_connection((3, PORT)) as ours:
        theirs, _ = server.accept()
        with theirs:
            for sock in (server, ours, theirs):
                assert isinstance(sock, vsock.socket)


def test_socket_of_the_kernel_is_an_instance(runtime_dir):
    """The test only creates it."""
    try:
        sock = vsock.socket(transport="kernel")
    except OSError as error:
        assert error.errno == errno.EAFNOSUPPORT  # a kernel without AF_VSOCK
        pytest.skip("this kernel has no AF_VSOCK")
    with sock, sock.dup() as twin:
        assert isinstance(sock, vsock.socket)
        assert isinstance(twin, vsock.socket)
        for name in ("listen", "shutdown", "recv", "send"):
            assert getattr(type(sock), name) is getattr(socket.socket, name)

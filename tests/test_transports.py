"""The choice of a transport, the errors without one, and hybrid sockets as a client."""

import errno
import os
import socket
import threading

import pytest

import vsock
from vsock import AddressError, HybridAddress, UsageError
from vsock.transports import KernelTransport, SwitchTransport, choose
from vsock.transports.hvsock import parse_answer


def test_transport_unnamed_is_the_switch_of_the_runtime_directory(runtime_dir):
    """By default sockets are sockets of the switch."""
    assert choose() == SwitchTransport(str(runtime_dir))
    assert choose("switch") == choose()
    assert choose(SwitchTransport("/elsewhere")) == SwitchTransport("/elsewhere")


def test_kernel_is_chosen_only_by_name(runtime_dir, monkeypatch):
    """The kernel's AF_VSOCK needs an argument or VSOCK_TRANSPORT; an argument wins."""
    assert isinstance(choose("kernel"), KernelTransport)
    monkeypatch.setenv("VSOCK_TRANSPORT", "kernel")
    assert isinstance(choose(), KernelTransport)
    assert choose("switch") == SwitchTransport(str(runtime_dir))
    with pytest.raises(AddressError, match="knows CIDs only"):
        vsock.create_connection("web:80")


def test_socket_of_the_kernel_has_the_methods_of_ours(runtime_dir, monkeypatch):
    """It is chosen by name, and is no Unix socket; the test only creates it."""
    ours = {name for name in dir(vsock.socket) if not name.startswith("_")}
    try:
        sock = vsock.socket(vsock.SOCK_SEQPACKET | socket.SOCK_NONBLOCK, transport="kernel")
    except OSError as error:
        assert error.errno == errno.EAFNOSUPPORT  # a kernel without AF_VSOCK
        pytest.skip("this kernel has no AF_VSOCK")
    with sock:
        assert (int(sock.family), sock.type) == (40, vsock.SOCK_SEQPACKET)
        assert not sock.getblocking()
        assert ours <= set(dir(sock))
        for seconds in (1.5, 1.9999999):
            sock.connect_timeout = seconds
            assert sock.connect_timeout == pytest.approx(seconds)
        for nonsense in (-0.5, float("nan"), float("inf")):
            with pytest.raises(UsageError):
                sock.connect_timeout = nonsense
        for address in ("web:80", "unix:/tmp/x", ("3", 80)):
            with pytest.raises(AddressError):
                sock.connect(address)  # type: ignore[arg-type]
    monkeypatch.setenv("VSOCK_TRANSPORT", "kernel")
    with vsock.socket() as sock:
        assert int(sock.family) == 40


def test_subclass_of_socket_lives_in_a_switch(runtime_dir):
    """A subclass of `vsock.socket` cannot be a socket of the kernel; the error says what can."""

    class Mine(vsock.socket):
        pass

    with Mine() as sock:
        assert sock.family == socket.AF_UNIX
    with pytest.raises(UsageError, match=r"Mine .*call vsock\.socket"):
        Mine(transport="kernel")


def test_unknown_transport_raises():
    """An unknown name is a UsageError."""
    with pytest.raises(UsageError, match="'telepathy'"):
        choose("telepathy")


def test_no_switch_says_what_to_do(runtime_dir):
    """The error has an errno, the path, and the alternatives."""
    with pytest.raises(vsock.NoSwitch) as caught:
        vsock.create_connection((3, 80))
    assert caught.value.errno == errno.ENODEV
    for part in (str(runtime_dir), "VSOCK_RUNTIME_DIR", "VSOCK_TRANSPORT=kernel"):
        assert part in str(caught.value)


def test_dead_switch_is_no_switch(runtime_dir):
    """A socket file without a server is the same as none."""
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(runtime_dir / "stream"))
    with pytest.raises(vsock.NoSwitch):
        vsock.create_server(80)


def test_runtime_directory_with_a_long_path_raises(monkeypatch):
    """The error names the path, which is too long for a Unix socket."""
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", "/" + "x" * 120)
    with pytest.raises(UsageError, match="107 bytes"):
        vsock.get_local_cid()


def test_address_of_another_kind_given_to_a_socket_raises(runtime_dir):
    """A socket of the switch connects to addresses of the switch only."""
    with vsock.socket() as sock, pytest.raises(AddressError, match="create_connection"):
        sock.connect("hvsock:///run/fc.sock:80")


# Hybrid sockets


@pytest.fixture
def hypervisor(tmp_path, monkeypatch):
    """Start a Unix server that answers one connection's CONNECT line with the given bytes."""
    monkeypatch.chdir(tmp_path)  # a relative path is short enough for a Unix socket
    path = os.path.relpath(tmp_path / "fc.sock")
    lines = []
    threads = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(30)

    def serve(answer):
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as file:
            lines.append(file.readline())
            if answer is not None:
                peer.sendall(answer)
                if answer.startswith(b"OK") and answer.endswith(b"go\n"):
                    peer.sendall(file.read().upper())
            else:
                file.read()

    def start(answer):
        threads.append(threading.Thread(target=serve, args=(answer,)))
        threads[-1].start()
        return HybridAddress(path, 52), lines

    yield start
    for thread in threads:
        thread.join(30)
    listener.close()


def test_hybrid_connection_carries_data_from_the_first_byte(hypervisor):
    """Bytes directly after the OK line belong to the stream."""
    address, lines = hypervisor(b"OK 1073\ngo\n")
    with vsock.create_connection(address) as sock:
        assert lines == [b"CONNECT 52\n"]
        assert sock.getsockname() == (vsock.CID_HOST, 1073)
        assert sock.getpeername().port == 52
        sock.sendall(b"shout")
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(100), b""))
    assert received == b"go\nSHOUT"


def test_hybrid_socket_closed_without_an_answer_is_a_refusal(hypervisor):
    """Firecracker closes the socket when the guest's port is not listening."""
    address, _ = hypervisor(b"")
    with pytest.raises(vsock.ConnectRefused) as caught:
        vsock.create_connection(address)
    assert caught.value.errno == errno.ECONNRESET


def test_hybrid_socket_that_is_not_there_is_named(tmp_path):
    """The error names the path that was tried."""
    path = str(tmp_path / "none.sock")
    for address in (HybridAddress(path, 52), vsock.UnixAddress(path)):
        with pytest.raises(FileNotFoundError, match=r"none\.sock"):
            vsock.create_connection(address)


def test_hybrid_socket_that_says_nothing_times_out(hypervisor):
    """The connect timeout ends the attempt."""
    address, _ = hypervisor(None)
    with pytest.raises(vsock.ConnectTimeout):
        vsock.create_connection(address, timeout=0.05)


@pytest.mark.parametrize(
    "line",
    [
        b"ERR\n",
        b"OK\n",
        b"OK x\n",
        b"OK -1\n",
        b"OK 4294967296\n",
        b"OK 1",
        b"OK " + b"0" * 40 + b"\n",
        b"\n",
    ],
)
def test_hybrid_answer_that_is_none_raises(line):
    """Only ``OK <port>`` is a valid answer."""
    with pytest.raises(vsock.ProtocolError):
        parse_answer(line, HybridAddress("/run/fc.sock", 52))


def test_hybrid_server_listens_where_the_hypervisor_looks(tmp_path, monkeypatch):
    """A guest's connection to the host's port 52 arrives at ``<path>_52``."""
    monkeypatch.chdir(tmp_path)
    with vsock.create_server(HybridAddress("fc.sock", 52)) as listener:
        with vsock.create_connection("unix:fc.sock_52") as ours:
            theirs, _ = listener.accept()
            with theirs:
                ours.sendall(b"hello")
                assert theirs.recv(10) == b"hello"

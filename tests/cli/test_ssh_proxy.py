"""`vsock ssh-proxy`: host names as in systemd-ssh-proxy, and both ways to pass the connection on."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vsock
from vsock.guest import Guest
from vsock.switch import Switch

COMMAND = [sys.executable, "-m", "vsock.cli", "ssh-proxy"]


@pytest.fixture
def sshd(guest: Guest) -> Iterator[int]:
    """A server in the guest `alpha` (3) that sends its name and then the received data in reverse."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-2.0-test\n")
            got = b"".join(iter(lambda: connection.recv(100), b""))
            connection.sendall(got[::-1])

    with guest.create_server((vsock.CID_ANY, 2222)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield 2222
        thread.join(10)


def copied(host: str, port: int) -> str:
    """The output of the command when it copies."""
    done = subprocess.run(
        [*COMMAND, host, str(port)],
        input="drawer",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("host", ["vsock/3", "vsock%3", "vsock,3", "vsock/alpha", "alpha"])
def test_guest_is_reached_by_cid_and_by_name(sshd: int, host: str) -> None:
    """All spellings of the host; the end of standard input is passed on as a half-close."""
    assert copied(host, sshd) == "SSH-2.0-test\nreward"


@pytest.mark.parametrize("spelled", ["vsock-mux{}", "vsock-mux%{}", "vsock-mux/{}"])
def test_multiplexer_socket_is_asked_for_the_port(tmp_path: Path, spelled: str) -> None:
    """With CONNECT and OK, as in Firecracker and Cloud Hypervisor."""
    path = tmp_path / "mux"
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(100))
            connection.sendall(b"OK 1024\nhello")
            while connection.recv(100):
                pass  # closing a Unix socket with unread data resets the connection

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        assert copied(spelled.format(path), 22) == "hello"
        thread.join(10)
    assert asked == [b"CONNECT 22\n"]


def test_unix_socket_is_a_target_too(tmp_path: Path) -> None:
    """As in systemd-ssh-proxy: for machines whose sshd listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sshd"))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.sendall(b"banner")
                while connection.recv(100):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        assert copied(f"unix{tmp_path}/sshd", 22) == "banner"
        thread.join(10)


def test_connection_itself_is_passed_where_ssh_takes_it(
    guest: Guest, listen: Callable[[], socket.socket]
) -> None:
    """With ProxyUseFdpass standard output is a socket: one byte and the descriptor, then the end."""
    listener = listen()
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        subprocess.Popen([*COMMAND, "vsock/3", "2222"], stdout=theirs.fileno()) as proxy,
    ):
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        assert proxy.wait(30) == 0
        connection, _ = listener.accept()
        with connection, socket.socket(fileno=fds[0]) as passed:
            passed.sendall(b"from ssh")
            assert connection.recv(100) == b"from ssh"
            assert os.get_blocking(passed.fileno())


@pytest.fixture
def listen(guest: Guest) -> Iterator[Callable[[], socket.socket]]:
    """Makes the guest listen on port 2222."""
    made: list[socket.socket] = []

    def listen() -> socket.socket:
        made.append(guest.create_server((vsock.CID_ANY, 2222)))
        return made[-1]

    yield listen
    for listener in made:
        listener.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vsock/"], "nothing after vsock"),
        (["vsock/3", "ssh"], "a port is a number"),
        (["vsock/no such guest"], "no such guest"),
        (["vsock/3", "4999"], "refused"),
        (["nobody"], "nobody"),
    ],
)
def test_what_cannot_be_reached_is_one_line(
    switch: Switch, guest: Guest, arguments: list[str], said: str
) -> None:
    """ssh shows the messages of its ProxyCommand."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""Python's own `socket.AF_VSOCK` as an example of a program: its calls have the kernel's results."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import vsock
from vsock.guest import Guest

Python = Callable[..., list[str]]


@pytest.fixture
def echo(guest: Guest) -> Iterator[int]:
    """An echo server in the guest, CID 3."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(1 << 16):
                connection.sendall(piece)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if is_over.is_set():
                connection.close()
                return
            server = threading.Thread(target=serve, args=(connection,), daemon=True)
            server.start()
            servers.append(server)

    servers: list[threading.Thread] = []
    is_over = threading.Event()
    with guest.create_server((vsock.CID_ANY, 5000)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield 5000
        is_over.set()
        guest.create_connection((vsock.CID_LOCAL, 5000)).close()
        # The end of a program's connection comes after the program's; a guest that left before it would reset them.
        thread.join(10)
        for server in servers:
            server.join(30)
            assert not server.is_alive()


def test_connected_socket_shows_addresses_of_af_vsock(echo: int, python: Python) -> None:
    """The family, the local address with CID_ANY, the peer's address; and the echo arrives."""
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
say(s.getsockname() == (ANY, ANY), error(s.getpeername))
s.connect((3, 5000))
say(s.family, s.getsockname()[0] == ANY, s.getsockname()[1] != ANY, s.getpeername())
say(s.getsockopt(SOL_SOCKET, socket.SO_DOMAIN), s.getsockopt(SOL_SOCKET, socket.SO_PROTOCOL))
s.sendall(b"hello")
say(s.recvfrom(100))
"""
    )
    assert said == ["True ENOTCONN", "40 True True (3, 5000)", "40 0", "(b'hello', None)"]


def test_large_transfer_with_half_close_is_whole(echo: int, python: Python) -> None:
    """Four megabytes in each direction; after the end of sending, receiving goes on."""
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.connect((3, 5000))
data = os.urandom(1 << 20) * 4
def send():
    s.sendall(data)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
got = b"".join(iter(lambda: s.recv(1 << 16), b""))
say(got == data, error(s.getpeername), error(s.send, b"x"))
"""
    )
    assert said == ["True ENOTCONN EPIPE"]


def test_failed_connects_have_the_errnos_of_af_vsock(echo: int, python: Python) -> None:
    """A refusal is ECONNRESET, an unknown guest ENODEV; the socket can be used again."""
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
say(error(s.connect, (3, 4999)), error(s.connect, (99, 1)), error(s.connect, (ANY, 1)))
s.connect((3, 5000))
say(error(s.connect, (3, 5000)), error(s.bind, (ANY, 1)))
"""
    )
    assert said == ["ECONNRESET ENODEV ENODEV", "EISCONN EINVAL"]


def test_non_blocking_connect_is_writable_with_the_verdict(echo: int, python: Python) -> None:
    """EINPROGRESS, then poll reports OUT, SO_ERROR has the outcome, and connect is EISCONN."""
    said = python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.setblocking(False)
say(errno.errorcode[s.connect_ex((3, 5000))])
poll = select.poll()
poll.register(s, select.POLLOUT)
say(poll.poll(5000) == [(s.fileno(), select.POLLOUT)], s.getsockopt(SOL_SOCKET, socket.SO_ERROR))
say(error(s.connect, (3, 5000)), s.getsockopt(SOL_SOCKET, socket.SO_SNDBUF) > 100_000)
t = socket.socket(AF_VSOCK, SOCK_STREAM)
t.setblocking(False)
t.connect_ex((3, 4999))
poll = select.poll()
poll.register(t, select.POLLOUT)
poll.poll(5000)
say(*[t.getsockopt(SOL_SOCKET, socket.SO_ERROR) for _ in range(2)], error(t.recv, 1))
"""
    )
    assert said == ["EINPROGRESS", "True 0", "EISCONN True", "104 0 ENOTCONN"]


@pytest.mark.parametrize("first", ["os.write(s.fileno(), b'x')", "s.send(b'x')"])
def test_program_that_never_asks_for_the_verdict_gets_only_its_data(
    echo: int, python: Python, first: str
) -> None:
    """After POLLOUT it writes and reads at once: the switch's answer must not be in its data."""
    said = python(
        f"""
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.setblocking(False)
s.connect_ex((3, 5000))
poll = select.poll()
poll.register(s, select.POLLOUT)
poll.poll(5000)
{first}
select.select([s], [], [], 5)
say(os.read(s.fileno(), 100))
"""
    )
    assert said == ["b'x'"]


def test_asyncio_streams_connect_and_are_refused(echo: int, python: Python) -> None:
    """With the event loop's own connect."""
    said = python(
        """
import asyncio
async def main():
    s = socket.socket(AF_VSOCK, SOCK_STREAM)
    s.setblocking(False)
    await asyncio.get_running_loop().sock_connect(s, (3, 5000))
    reader, writer = await asyncio.open_connection(sock=s)
    writer.write(b"line\\n")
    say(await reader.readline())
    writer.close()
    t = socket.socket(AF_VSOCK, SOCK_STREAM)
    t.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(t, (3, 4999))
    except ConnectionResetError:
        say("refused")
asyncio.run(main())
"""
    )
    assert said == ["b'line\\n'", "refused"]


def test_connection_from_the_guest_is_accepted_with_its_address(
    guest: Guest, start_python: Any
) -> None:
    """bind, listen, accept; the accepted socket has both addresses."""
    server = start_python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.bind((ANY, ANY))
say(s.getsockname()[1], error(s.accept), error(s.bind, (ANY, 7777)))
s.listen(4)
say(s.getsockopt(SOL_SOCKET, socket.SO_ACCEPTCONN), error(s.connect, (3, 1)), error(s.shutdown, 2))
c, address = s.accept()
say(address, c.getsockname() == (2, s.getsockname()[1]), c.getpeername() == address)
say(c.getsockopt(SOL_SOCKET, socket.SO_ACCEPTCONN), c.recv(100))
c.sendall(b"answer")
"""
    )
    port, *errors = server.stdout.readline().split()
    assert errors == ["EINVAL", "EINVAL"]
    assert server.stdout.readline() == "1 EINVAL ENOTCONN\n"
    with guest.create_connection((2, int(port))) as connection:
        connection.sendall(b"question")
        ours = connection.getsockname()
        assert connection.recv(100) == b"answer"
    shown = server.stdout.read().splitlines()
    assert shown == [f"(3, {ours.port}) True True", "0 b'question'"]


def test_non_blocking_listener_says_eagain_and_polls_in(guest: Guest, start_python: Any) -> None:
    """EAGAIN while no connection waits; poll reports when one does."""
    server = start_python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.bind((ANY, 6000))
s.listen()
s.setblocking(False)
say(error(s.accept), s.getsockopt(SOL_SOCKET, socket.SO_ERROR))
poll = select.poll()
poll.register(s, select.POLLIN)
say(poll.poll(20_000) == [(s.fileno(), select.POLLIN)])
c, _ = s.accept()
say(os.get_inheritable(c.fileno()), c.getblocking())
"""
    )
    assert server.stdout.readline() == "EAGAIN 0\n"
    with guest.create_connection((2, 6000)) as connection:
        assert connection.recv(1) == b""
    assert server.stdout.read() == "True\nFalse True\n"


def test_seqpacket_keeps_messages(guest: Guest, python: Python) -> None:
    """Message boundaries in both directions; an empty message is not sent."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while message := connection.recv(1 << 16):
                connection.send(message * 2)

    with guest.create_server((vsock.CID_ANY, 5001), type=socket.SOCK_SEQPACKET) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        said = python(
            """
s = socket.socket(AF_VSOCK, SOCK_SEQPACKET)
s.connect((3, 5001))
say(s.send(b""), os.write(s.fileno(), b""), s.send(b"one"), s.send(b"three"))
say(s.recv(100), s.recv(100))
"""
        )
        thread.join(10)
    assert said == ["0 0 3 5", "b'oneone' b'threethree'"]


def test_state_is_seen_through_dup_fork_exec_and_passing(echo: int, python: Python) -> None:
    """The state is in the socket, not in the process: every process with the descriptor sees it."""
    said = python(
        """
import subprocess
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.connect((3, 5000))
d = socket.socket(fileno=os.dup(s.fileno()))
say(d.family, d.getpeername())
child = os.fork()
if child == 0:
    say(s.getpeername())
    os._exit(0)
os.waitpid(child, 0)
shown = 's = socket.socket(fileno=int(sys.argv[1])); print(s.family, s.getpeername())'
subprocess.run(
    [sys.executable, "-c", "import socket, sys; " + shown, str(s.fileno())], pass_fds=[s.fileno()]
)
a, b = socket.socketpair()
socket.send_fds(a, [b"x"], [s.fileno()])
_, [passed], _, _ = socket.recv_fds(b, 1, 1)
s.close()
d.close()
p = socket.socket(fileno=passed)
p.sendall(b"still")
say(p.family, p.getpeername(), p.recv(100))
"""
    )
    assert said == [
        "40 (3, 5000)",
        "(3, 5000)",
        "40 (3, 5000)",
        "40 (3, 5000) b'still'",
    ]


def test_socket_without_a_connection_takes_no_data_of_a_child_either(
    echo: int, python: Python
) -> None:
    """S21: a child's writes are ENOTCONN, not requests to the switch, which would cost the parent its port."""
    said = python(
        """
import subprocess
child = (
    "import errno, os, sys\\n"
    "for call in (lambda: os.write(2, b'7' * 36), lambda: os.read(2, 36)):\\n"
    "    try: print(call())\\n"
    "    except OSError as error: print(errno.errorcode[error.errno])\\n"
)
for is_listening in (False, True):
    s = socket.socket(AF_VSOCK, SOCK_STREAM)
    s.bind((ANY, 7000 + is_listening))
    if is_listening:
        s.listen()
    subprocess.run([sys.executable, "-c", child], stderr=s.fileno(), check=True)
    if not is_listening:
        s.listen()
    c = socket.socket(AF_VSOCK, SOCK_STREAM)
    c.connect((2, s.getsockname()[1]))
    say(s.accept()[0].getsockname()[1])
"""
    )
    assert said == ["ENOTCONN", "ENOTCONN", "7000", "ENOTCONN", "ENOTCONN", "7001"]


def test_threads_connect_at_once(echo: int, python: Python) -> None:
    """Sixteen threads, each with connections of its own, blocking and not."""
    said = python(
        """
done = []
def work(number):
    for round in range(10):
        s = socket.socket(AF_VSOCK, SOCK_STREAM)
        if number % 2:
            s.settimeout(10)  # makes Python connect without blocking
        s.connect((3, 5000))
        word = b"%d-%d" % (number, round)
        s.sendall(word)
        if s.recv(100) == word:
            done.append(word)
        s.close()
threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
[t.start() for t in threads]
[t.join() for t in threads]
say(len(set(done)))
"""
    )
    assert said == ["160"]


def test_options_read_back_as_the_kernel_stores_them(switch: object, python: Python) -> None:
    """Buffer sizes are clamped (raise the maximum first), timeouts rounded up, other options are errors."""
    said = python(
        """
import ctypes  # Python's own getsockopt reads and writes eight bytes, whatever the option
libc = ctypes.CDLL(None, use_errno=True)
s = socket.socket(AF_VSOCK, SOCK_STREAM)
def get(level, name, size):
    value, room = ctypes.create_string_buffer(size), ctypes.c_uint(size)
    if libc.getsockopt(s.fileno(), level, name, value, ctypes.byref(room)):
        raise OSError(ctypes.get_errno(), "")
    return value.raw[: room.value]
def put(level, name, value):
    if libc.setsockopt(s.fileno(), level, name, value, len(value)):
        raise OSError(ctypes.get_errno(), "")
def size(name): return struct.unpack("Q", get(AF_VSOCK, name, 8))[0]
def set(name, value): put(AF_VSOCK, name, struct.pack("Q", value))
say(size(0), size(1), size(2))
set(0, 1 << 20); say(size(0))
set(2, 1 << 21); set(0, 1 << 20); say(size(0))
set(1, 1 << 22); say(size(0))
def time_out(seconds, us): put(AF_VSOCK, 6, struct.pack("ll", seconds, us))
def timed_out(): return struct.unpack("ll", get(AF_VSOCK, 6, 16))
say(timed_out()); time_out(5, 0); say(timed_out()); time_out(0, 0); say(timed_out())
say(error(time_out, -1, 0), error(time_out, 0, 1_000_000), error(get, AF_VSOCK, 0, 4))
say(error(get, AF_VSOCK, 5, 8), error(get, 6, 1, 4), error(put, 6, 1, bytes(4)))
say(error(put, SOL_SOCKET, socket.SO_REUSEPORT, b"\\1\\0\\0\\0"), error(put, AF_VSOCK, 0, bytes(4)))
say(get(SOL_SOCKET, socket.SO_TYPE, 4), get(SOL_SOCKET, socket.SO_DOMAIN, 2), get(AF_VSOCK, 2, 99))
"""
    )
    assert said == [
        "262144 128 262144",
        "262144",
        "1048576",
        "2097152",
        "(2, 0)",
        "(5, 0)",
        "(2, 0)",
        "ERANGE ERANGE EINVAL",
        "ENOPROTOOPT ENOPROTOOPT ENOPROTOOPT",
        "EOPNOTSUPP EINVAL",
        r"b'\x01\x00\x00\x00' b'(\x00' b'\x00\x00 \x00\x00\x00\x00\x00'",
    ]


def test_mistakes_have_the_errnos_of_af_vsock(echo: int, python: Python) -> None:
    """Wrong types, wrong states, unknown flags."""
    said = python(
        """
def make(*arguments): socket.socket(AF_VSOCK, *arguments)
say(error(make, socket.SOCK_DGRAM), error(make, socket.SOCK_RAW), error(make, SOCK_STREAM, 6))
say(error(make, 11), error(socket.socketpair, AF_VSOCK))
s = socket.socket(AF_VSOCK, SOCK_STREAM, 40)
say(error(s.recv, 1), error(s.send, b"x"), error(s.listen), error(s.accept), error(s.shutdown, 2))
s.bind((ANY, 7000))
say(error(s.recv, 1), error(s.send, b"x"), error(os.read, s.fileno(), 1))
t = socket.socket(AF_VSOCK, SOCK_SEQPACKET)
say(error(t.bind, (ANY, 7000)), error(t.bind, (3, 7001)))
s.connect((3, 5000))
say(s.getsockname(), error(s.send, b"x", socket.MSG_OOB), error(s.sendto, b"x", (3, 5000)))
"""
    )
    assert said == [
        "ENODEV ESOCKTNOSUPPORT EPROTONOSUPPORT",
        "EINVAL EOPNOTSUPP",
        "ENOTCONN ENOTCONN EINVAL EINVAL ENOTCONN",
        "ENOTCONN ENOTCONN ENOTCONN",
        "EADDRINUSE EADDRNOTAVAIL",
        f"({0xFFFFFFFF}, 7000) EOPNOTSUPP EISCONN",
    ]


def test_local_cid_is_the_switchs(switch: object, python: Python) -> None:
    """/dev/vsock need not exist; the ioctl on a socket is ENOTTY."""
    said = python(
        """
import fcntl
with open("/dev/vsock") as device:
    say(struct.unpack("I", fcntl.ioctl(device, 0x7b9, bytes(4))))
s = socket.socket(AF_VSOCK, SOCK_STREAM)
say(error(fcntl.ioctl, s, 0x7b9, bytes(4)), error(fcntl.ioctl, s, 0x541b, bytes(4)))
"""
    )
    assert said == ["(2,)", "ENOTTY EOPNOTSUPP"]


def test_two_programs_on_the_host_talk_over_local_cid(
    switch: object, python: Python, start_python: Any
) -> None:
    """Over CID 1; both programs are unmodified, and no guest takes part."""
    server = start_python(
        """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.bind((1, 6100))
s.listen()
say("ready")
c, address = s.accept()
say(address[0], c.recv(100))
"""
    )
    assert server.stdout.readline() == "ready\n"
    python("s = socket.socket(AF_VSOCK, SOCK_STREAM); s.connect((1, 6100)); s.send(b'hi')")
    assert server.stdout.read() == "1 b'hi'\n"


def test_other_sockets_are_left_alone(switch: object, python: Python) -> None:
    """Unix and Internet sockets, pipes and files work as without the library."""
    said = python(
        """
a, b = socket.socketpair()
a.send(b"x"); say(b.recvfrom(10), a.getsockname() == "", b.family == socket.AF_UNIX)
u = socket.socket(socket.AF_UNIX); u.bind("\\0vsock-preload-test-%d" % os.getpid()); u.listen()
v = socket.socket(socket.AF_UNIX); v.connect(u.getsockname()); w, _ = u.accept()
v.send(b"y"); say(w.recv(10), v.getpeername() == u.getsockname())
i = socket.create_server(("127.0.0.1", 0)); j = socket.create_connection(i.getsockname())
k, address = i.accept(); j.sendall(b"z", socket.MSG_OOB)
say(k.recv(10, socket.MSG_OOB), address == j.getsockname(), error(u.getpeername))
r, w = os.pipe(); os.write(w, b"pipe"); say(os.read(r, 10), error(socket.socket(socket.AF_UNIX).recv, 1))
say(error(socket.socket(socket.AF_UNIX).connect, "/nonexistent"))
"""
    )
    assert said == [
        "(b'x', None) True True",
        "b'y' True",
        "b'z' True ENOTCONN",
        "b'pipe' EINVAL",
        "ENOENT",
    ]

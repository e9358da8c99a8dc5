"""``vsock.socket(transport="kernel")`` in a guest, with the guest kernel's own AF_VSOCK.

The modules are sent to the guest, where the package is not installed. The guest's Python runs them as if
it had been built without AF_VSOCK.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

import vsock
from vsock import sockets
from vsock.demo.places import LinuxPlace
from vsock.testing.plugin import KINDS
from vsock.transports import SwitchTransport

PACKAGE = Path(vsock.__file__).parent


PARTS = ("address", "errors", "runtime", "_system", "_client", "_socket", "transports", "sockets")
"""What `vsock.socket` is made of: modules and packages of the package."""


def sources() -> dict[str, str]:
    """Each of these modules: its path in the package, and its text."""
    files = [file for part in PARTS for file in PACKAGE.glob(f"{part}.py")]
    files += [file for part in PARTS for file in PACKAGE.glob(f"{part}/*.py")]
    return {str(file.relative_to(PACKAGE)): file.read_text() for file in files}


PROGRAM = r"""
import errno, os, select, socket, struct, sys, tempfile, threading

if hasattr(socket, "AF_VSOCK"):
    del socket.AF_VSOCK  # a Python without it has no such name

directory = tempfile.mkdtemp()
for path, source in {sources!r}.items():
    path = os.path.join(directory, "vsock", path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(source)
sys.path.insert(0, directory)
from vsock.errors import ConnectRefused
from vsock.sockets import get_local_cid, socket as vsock_socket

def kernel(*arguments):
    return vsock_socket(*arguments, transport="kernel")

port, cid = {port}, {cid}
assert get_local_cid(transport="kernel") == cid

def number(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0

with kernel() as listener, kernel() as client:
    assert listener.getsockname() == (0xFFFFFFFF, 0xFFFFFFFF)
    listener.bind((0xFFFFFFFF, port))
    assert listener.getsockname() == (0xFFFFFFFF, port)
    listener.listen(1)
    listener.settimeout(0.05)
    assert number(listener.accept) is None  # TimeoutError has no errno
    listener.setblocking(False)
    assert number(listener.accept) == errno.EAGAIN
    # A timeout of connect, and the kernel's own, which is an option.
    client.setsockopt(40, 6, struct.pack("ll", 1, 0))
    assert struct.unpack("ll", client.getsockopt(40, 6, 16)) == (1, 0)
    assert client.connect_timeout == 1.0
    client.connect_timeout = 2.5
    assert struct.unpack("ll", client.getsockopt(40, 6, 16)) == (2, 500_000)
    linger = struct.pack("ii", 1, 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == linger
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    client.setsockopt(40, 2, 1 << 20)
    client.setsockopt(40, 0, 1 << 20)
    assert client.getsockopt(40, 0) == 1 << 20
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == 40
    assert number(client.getpeername) == errno.ENOTCONN
    client.settimeout(10)
    print("connecting", flush=True)
    client.connect(f"host:{port}")
    assert client.getpeername() == (2, port)
    assert number(lambda: client.connect((2, port))) == errno.EISCONN
    client.sendall(b"from the guest")
    assert client.recv(100) == b"from the host"
    with client.dup() as twin:
        twin.shutdown(socket.SHUT_WR)
    print("listening", flush=True)
    listener.settimeout(10)
    accepted, peer = listener.accept()
    with accepted:
        assert peer[0] == 2 and accepted.getpeername() == peer, peer
        assert accepted.getsockname()[1] == port
        accepted.sendall(accepted.recv(100).upper())
with kernel() as refused:
    refused.settimeout(10)
    assert refused.connect_ex((2, port + 1)) == errno.ECONNRESET
with kernel() as refused:
    try:
        refused.connect((2, port + 1))
        raise AssertionError("connected to nobody")
    except ConnectRefused as error:
        assert error.errno == errno.ECONNRESET
with kernel(socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as waiting:
    assert waiting.connect_ex((2, port + 1)) == errno.EINPROGRESS
    assert select.select([], [waiting], [], 10)[1]
    try:
        waiting.finish_connect()
        raise AssertionError("connected to nobody")
    except ConnectRefused:
        pass
    assert number(waiting.finish_connect) == errno.EALREADY
with kernel(socket.SOCK_SEQPACKET) as messages:
    assert messages.type == socket.SOCK_SEQPACKET
assert number(lambda: kernel(socket.SOCK_DGRAM)) == errno.ENODEV
assert number(lambda: kernel(socket.SOCK_STREAM, 7)) == errno.EPROTONOSUPPORT
print("done")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_program_in_a_guest_uses_the_guests_kernel(
    place: Callable[[str], LinuxPlace], transport: SwitchTransport, port: int, kind: str
) -> None:
    """Connect, accept, timeouts, options, errors and the local CID; datagrams are ENODEV there."""
    guest = place(kind)
    source = PROGRAM.replace("{port}", str(port)).replace("{cid}", str(guest.cid))
    source = source.replace("{sources!r}", repr(sources()))
    with sockets.create_server(port, transport=transport) as listener:
        listener.settimeout(20)
        program = guest.guest.spawn_call(run_program, source)
        assert program.read_line() == "connecting"
        theirs, peer = listener.accept()
        with theirs:
            assert peer[0] == guest.cid
            assert theirs.recv(100) == b"from the guest"
            theirs.sendall(b"from the host")
            assert theirs.recv(100) == b""
            assert program.read_line() == "listening"
            with sockets.create_connection((guest.cid, port), 10, transport=transport) as ours:
                ours.sendall(b"shout")
                assert ours.recv(100) == b"SHOUT"
        assert program.read_line() == "done"


def run_program(source: str) -> None:
    """In the guest: run `source`."""
    exec(compile(source, "program", "exec"), {"__name__": "program"})  # noqa: S102 - it is ours

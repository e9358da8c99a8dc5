"""The CID of a running Linux guest changes, as when it migrates; real kernels show the effects that vsock(7) describes.

User-Mode Linux gives the event queue to the switch, which sends TRANSPORT_RESET; so does the generic device of
QEMU 11.1 (`vsock qemu-args --event-queue`). QEMU's own vsock device keeps that queue: there each connection
ends with RST, and the guest reads its new CID when its driver is restarted.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vsock import sockets
from vsock.control.client import ControlClient
from vsock.demo.places import LinuxPlace
from vsock.testing.plugin import KINDS, NEWER_KINDS
from vsock.transports import SwitchTransport

GetPlace = Callable[[str], LinuxPlace]

DEADLINE = 60
DRIVER = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"

every_kind = pytest.mark.parametrize("kind", KINDS + NEWER_KINDS)


def watch_connection(port: int) -> None:
    """In the guest: connect to the host, and print how the connection ends; a listener goes on meanwhile."""
    import errno
    import fcntl
    import select
    import socket
    import struct
    import threading
    from pathlib import Path

    def call(function):
        try:
            return repr(function())
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def local_cid() -> int:
        with Path("/dev/vsock").open("rb") as device:
            return int(struct.unpack("I", fcntl.ioctl(device, 0x7B9, bytes(4)))[0])

    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen()
    client = socket.socket(socket.AF_VSOCK)
    client.connect((socket.VMADDR_CID_HOST, port))
    first = []
    reader = threading.Thread(target=lambda: first.append(call(lambda: client.recv(1))))
    reader.start()
    state = Path(f"/proc/self/task/{reader.native_id}/stat")
    while state.read_text().rpartition(") ")[2][0] != "S":  # asleep, in the kernel's recv
        pass
    print("connected", local_cid(), flush=True)
    reader.join()
    poller = select.poll()
    poller.register(client, select.POLLIN | select.POLLOUT)
    events = poller.poll(0)[0][1]
    print(
        first[0], call(lambda: client.recv(1)), call(lambda: client.send(b"x")), events, flush=True
    )
    # The listener from before takes connections to the new CID, and a new client is the new CID.
    connection = listener.accept()[0]
    print(connection.getsockname()[0], connection.recv(100).decode(), local_cid(), flush=True)
    again = socket.socket(socket.AF_VSOCK)
    again.connect((socket.VMADDR_CID_HOST, port))
    again.sendall(b"from the guest")
    again.recv(1)


@contextmanager
def another_cid(client: ControlClient, name: str, cid: int) -> Iterator[int]:
    """Give the guest CID `cid` + 1000, and restore its own afterwards, because other tests share the guest."""
    try:
        client.set_guest_cid(name, cid + 1000)
        yield cid + 1000
    finally:
        client.set_guest_cid(name, cid)


@every_kind
def test_guest_with_a_new_cid_loses_its_connections_and_keeps_its_listeners(
    place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """ECONNRESET, then ENOTCONN in a guest that is notified; the end of the data after RST. ECONNRESET on the host."""
    guest = place(kind)
    client = ControlClient(Path(transport.directory))
    is_told = kind.startswith("uml") or kind == "qemu-events"
    with sockets.create_server(port, transport=transport) as on_host:
        on_host.settimeout(DEADLINE)
        program = guest.guest.spawn_call(watch_connection, port)
        theirs, peer = on_host.accept()
        with theirs:
            assert program.read_line() == f"connected {guest.cid}"
            with another_cid(client, kind, guest.cid) as cid:
                theirs.settimeout(DEADLINE)
                with pytest.raises(ConnectionResetError):
                    theirs.recv(1)
                end = program.read_line()
                # POLLERR|POLLOUT; after RST POLLIN|POLLOUT, and the data's end.
                assert end == (
                    "ECONNRESET ENOTCONN ENOTCONN 12" if is_told else "b'' b'' EPIPE 5"
                ), end
                connection = sockets.create_connection((cid, port), transport=transport)
                with closing(connection):
                    connection.sendall(b"hello")
                    learned = cid if is_told else guest.cid
                    assert program.read_line() == f"{cid} hello {learned}"
                    again, peer = on_host.accept()
                    with again:
                        again.settimeout(DEADLINE)
                        assert peer[0] == cid
                        assert again.recv(100) == b"from the guest"


@pytest.mark.parametrize("kind", ["qemu-6.1", "qemu-6.12"])
def test_guest_under_qemu_learns_its_new_cid_when_its_driver_begins_anew(
    place: GetPlace, transport: SwitchTransport, port: int, kind: str
) -> None:
    """The configuration space changes at once, and a driver that is restarted reads it."""
    guest = place(kind)
    client = ControlClient(Path(transport.directory))
    device = guest.guest.run(f"ls {DRIVER} | grep virtio").check().stdout.split()[0]
    with another_cid(client, kind, guest.cid) as cid:
        rebind = f"echo {device} > {DRIVER}/unbind; echo {device} > {DRIVER}/bind"
        guest.guest.run(rebind).check()
        assert guest.guest.call(local_cid) == cid
    guest.guest.run(f"echo {device} > {DRIVER}/unbind; echo {device} > {DRIVER}/bind").check()
    assert guest.guest.call(local_cid) == guest.cid


def local_cid() -> int:
    """In the guest: the CID of its vsock device."""
    import fcntl
    import struct
    from pathlib import Path

    with Path("/dev/vsock").open("rb") as device:
        return int(struct.unpack("I", fcntl.ioctl(device, 0x7B9, bytes(4)))[0])

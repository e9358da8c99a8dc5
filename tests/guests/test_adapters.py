"""`vsock.adapters` with programs in real guests, which have nothing of ours."""

import pytest

from vsock.adapters.multiprocessing import Client

KEY = b"a key"


def listen(port: int) -> None:
    """In the guest: the standard library's listener, which sends back what it gets."""
    import multiprocessing.connection
    import socket

    with multiprocessing.connection.Listener(
        (socket.VMADDR_CID_ANY, port),  # type: ignore[arg-type] # typeshed knows no AF_VSOCK
        family="AF_VSOCK",
        authkey=b"a key",
    ) as listener:
        print("listening", flush=True)
        with listener.accept() as connection:
            connection.send(["guest", connection.recv()])


@pytest.mark.parametrize("kind", ["uml", "qemu-6.12"])
def test_objects_go_to_the_standard_librarys_listener_in_a_guest(place, transport, port, kind):
    """It has the family AF_VSOCK; its Client has not."""
    found = place(kind)
    process = found.guest.spawn_call(listen, port)
    assert process.read_line() == "listening"
    with Client((found.cid, port), authkey=KEY, timeout=30, transport=transport) as connection:
        connection.send({"large": b"x" * 1_000_000})
        assert connection.recv() == ["guest", {"large": b"x" * 1_000_000}]
    process.result()

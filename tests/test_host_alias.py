"""A guest that reaches the host by another CID too, as software for Nitro enclaves connects to CID 3."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsock
from vsock import ConnectRefused, Switch, UsageError, testing
from vsock.cli.main import main
from vsock.control.config import ConfigError, parse
from vsock.errors import TransportError
from vsock.guest import Guest
from vsock.testing.plugin import REQUIRED_VARIABLE

PORT = 6000


@pytest.fixture
def switch(runtime_dir: Path) -> Iterator[Switch]:
    """`enclave` (4) also reaches the host as 3; the guest with CID 3 shares no group with it."""
    with Switch({"other": 3}, runtime_dir=runtime_dir, control=True) as switch:
        switch.add_guest("enclave", 4, groups=["lab"], host_aliases=[3, 77])
        yield switch


@pytest.fixture
def enclave(switch: Switch) -> Iterator[Guest]:
    """The guest with aliases, in this process."""
    with Guest(switch.socket_path("enclave")) as guest:
        yield guest


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("cid", [2, 3, 77])
def test_host_answers_by_the_cid_that_it_was_called(enclave: Guest, cid: int, kind: int) -> None:
    """Both ends have the address that the guest used; data goes both ways."""
    with vsock.create_server(PORT, type=kind) as listener:
        with enclave.create_connection((cid, PORT), type=kind) as ours:
            assert ours.getpeername() == (cid, PORT)
            theirs, peer = listener.accept()
            with theirs:
                assert (peer.cid, theirs.getsockname()) == (4, (cid, PORT))
                for sender, receiver in ((ours, theirs), (theirs, ours)):
                    sender.sendall(bytes(60_000))
                    receiver.settimeout(10)
                    got = 0
                    while got < 60_000:
                        got += len(receiver.recv(60_000))


def test_datagrams_reach_the_host_by_an_alias(enclave: Guest) -> None:
    """The receiver sees the sender's address."""
    with vsock.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind((vsock.CID_ANY, PORT))
        receiver.settimeout(10)
        with vsock.socket(type=socket.SOCK_DGRAM, transport=enclave.transport) as sender:
            sender.sendto(b"hello", (3, PORT))
            data, source = receiver.recvfrom(100)
            assert (data, source[0]) == (b"hello", 4)


def test_alias_is_that_guests_alone(switch: Switch, enclave: Guest) -> None:
    """For other guests and for the host, the CID is the guest that has it."""
    with vsock.create_server(PORT) as listener, Guest(switch.socket_path("other")) as other:
        with other.create_server(7000), vsock.create_connection((3, 7000)):
            pass
        with pytest.raises(ConnectRefused):
            other.create_connection((77, PORT))
        with pytest.raises(ConnectRefused):
            enclave.create_connection((3, 7000))  # the host has no such port
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert switch.explain("enclave", 3).rule == "host"
    assert switch.explain("other", "enclave").rule == "default"


def test_alias_of_two_meanings_is_refused(switch: Switch) -> None:
    """Within a group a CID is either a guest or the host, in any order of changes."""
    with pytest.raises(TransportError, match="CID 4 belongs to guest enclave, of the same group"):
        switch.add_guest("third", 5, groups=["lab"], host_aliases=[4])
    with pytest.raises(TransportError, match="CID 77 is the host to guest enclave"):
        switch.add_guest("third", 77, groups=["lab"])
    switch.add_guest("third", 5, groups=["lab"])
    with pytest.raises(TransportError, match="CID 77 is the host to guest enclave"):
        switch.set_guest_cid("third", 77)
    for aliases, reason in (
        ([2], "2 is no guest's CID"),
        ([6], "6 is the guest's own CID"),
        (list(range(10, 19)), "at most 8"),
    ):
        with pytest.raises(UsageError, match=f"host_aliases: {reason}"):
            switch.add_guest("fourth", 6, host_aliases=aliases)


def test_aliases_come_from_a_file_and_the_command_line(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listings show them."""
    table = '[[guest]]\nname = "enclave"\ncid = 4\nhost_aliases = '
    assert parse(table + "[3]\n").guests[0].host_aliases == (3,)
    with pytest.raises(ConfigError, match=r":4: alias 'parent' is not a whole number"):
        parse(table + '["parent"]\n')
    with pytest.raises(ConfigError, match=r":4: host_aliases: 4 is the guest's own CID"):
        parse(table + "[4]\n")
    assert main(["guest", "add", "late", "9", "--host-alias", "3", "--host-alias=8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["host_aliases"] == [3, 8]
    assert switch.guest("enclave").host_aliases == (3, 77)


def call_parent(port: int) -> str:
    """In the guest: the parent's answer."""
    import socket

    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.connect((3, port))
    assert sock.getpeername() == (3, port)
    sock.sendall(b"from the enclave")
    return sock.recv(100).decode()


@pytest.mark.vm
@pytest.mark.timeout(180)
def test_kernel_of_a_guest_takes_the_answers_of_an_alias(switch: Switch) -> None:
    """A Linux guest drops packets that do not come from the CID to which it connected."""
    try:
        testing.find_image("uml")
    except testing.GuestUnavailable as missing:
        if os.environ.get(REQUIRED_VARIABLE):
            raise
        pytest.skip(str(missing))
    with (
        testing.boot(switch, "enclave", vmm="uml") as guest,
        vsock.create_server(PORT) as listener,
    ):
        listener.settimeout(30)
        program = guest.spawn_call(call_parent, PORT)
        theirs, peer = listener.accept()
        with theirs:
            assert peer.cid == 4
            assert theirs.recv(100) == b"from the enclave"
            theirs.sendall(b"from the parent")
        assert program.result() == "from the parent"

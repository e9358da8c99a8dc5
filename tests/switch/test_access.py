"""Who may connect to the sockets of a guest, and to whose sockets a guest gets, when users differ."""

import contextlib
import ctypes
import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsock
from vsock.errors import UsageError
from vsock.guest import Guest
from vsock.switch import Switch


def test_sockets_get_the_mode_that_is_asked_for_whatever_the_umask(runtime_dir: Path) -> None:
    """S17: the group's bits are not the umask's to take away, neither at first nor after a change."""
    outside, hybrid = runtime_dir / "out.sock", runtime_dir / "out.vsock"
    before = os.umask(0o077)
    try:
        with Switch(runtime_dir=runtime_dir / "run") as switch:
            access = {"socket_group": str(os.getgid()), "socket_mode": "0660"}
            alpha = switch.add_guest("alpha", 3, socket=outside, hybrid=hybrid, **access)
            switch.change_guest("alpha", hybrid=runtime_dir / "other.vsock")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in runtime_dir.iterdir()}
            with pytest.raises(UsageError, match="socket_user: there is no user 'no-such-user'"):
                switch.add_guest("beta", 4, socket=runtime_dir / "b", socket_user="no-such-user")
    finally:
        os.umask(before)
    assert modes == {"run": 0o700, "out.sock": 0o660, "other.vsock": 0o660}
    group = grp.getgrgid(os.getgid()).gr_name
    assert (alpha.socket_user, alpha.socket_group, alpha.socket_mode) == (None, group, "0660")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_sockets_of_a_guest_can_be_another_users(runtime_dir: Path) -> None:
    """S17: a hypervisor that runs as another user may connect to its guest's socket, and to no other's."""
    runtime_dir.chmod(0o711)
    theirs = ("12345", "12346")
    with Switch(runtime_dir=runtime_dir / "run") as switch:
        record = switch.add_guest("alpha", 3, socket=runtime_dir / "a", socket_user=theirs[0])
        switch.add_guest("beta", 4, socket=runtime_dir / "b")
        access = {"socket_group": theirs[1], "socket_mode": "660"}
        switch.add_guest("gamma", 5, socket=runtime_dir / "c", hybrid=runtime_dir / "h", **access)
        with _acting_as(*map(int, theirs)):
            able = [name for name in "abch" if _may_connect(runtime_dir / name)]
    assert (record.socket_user, able) == (theirs[0], ["a", "c", "h"])


@contextlib.contextmanager
def _acting_as(uid: int, gid: int) -> Iterator[None]:
    """Gives this thread, which is root's, another user's rights to files: setfsuid(2)."""
    libc = ctypes.CDLL(None)
    libc.setfsgid(gid)
    libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(0)


def _may_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except PermissionError:
            return False
        return True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has more rights than another user")
def test_hybrid_socket_in_a_users_directory_leads_to_sockets_of_that_user(
    runtime_dir: Path,
) -> None:
    """S8: its owner cannot make a switch of root connect to a socket that is not his."""
    theirs = runtime_dir / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    places = {7000: "same", 7001: "root's", 7002: "link"}
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Switch(runtime_dir=runtime_dir / "run"))
        switch.add_guest("alpha", 3, hybrid=theirs / "vm.vsock")
        alpha = stack.enter_context(Guest(switch.socket_path("alpha")))
        listeners = {port: stack.enter_context(socket.socket(socket.AF_UNIX)) for port in places}
        for port, listener in listeners.items():
            name = f"vm.vsock_{port}"
            listener.bind(str(theirs / name if port != 7002 else runtime_dir / "secret"))
            listener.listen()
        os.chown(theirs / "vm.vsock_7000", 12345, 12345)
        (theirs / "vm.vsock_7002").symlink_to(runtime_dir / "secret")
        with alpha.create_connection("host:7000") as ours, listeners[7000].accept()[0] as peer:
            peer.sendall(b"hello")
            assert ours.recv(5) == b"hello"
        for port in (7001, 7002):
            with pytest.raises(vsock.ConnectRefused):
                alpha.create_connection(f"host:{port}")
        assert switch.info().counters["refused_foreign_socket"] == 2

"""Claiming socket paths: stale sockets are replaced, live ones are left alone and reported."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from vsock.errors import TransportError, UsageError
from vsock.switch.claims import RuntimeClaim, clear_socket, owner_of


def bound(path: Path) -> socket.socket:
    """A socket that is bound at `path` and does not listen."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(path))
    return made


def test_stale_socket_is_removed(runtime_dir: Path) -> None:
    """The socket file of a dead process is removed."""
    path = runtime_dir / "x.sock"
    bound(path).close()
    clear_socket(path)
    assert not path.exists()


def test_living_socket_is_left_and_its_owner_named(runtime_dir: Path) -> None:
    """The message names the process."""
    path = runtime_dir / "x.sock"
    with bound(path) as listener:
        listener.listen()
        with pytest.raises(TransportError, match=f"in use by process {os.getpid()} ") as caught:
            clear_socket(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.exists()


def test_living_socket_with_a_full_queue_is_left(runtime_dir: Path) -> None:
    """A full queue does not mean that the process is dead."""
    path = runtime_dir / "x.sock"
    with bound(path) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(TransportError, match="in use"):
            clear_socket(path)


def test_living_socket_of_another_type_is_left(runtime_dir: Path) -> None:
    """A stream socket cannot connect to a datagram socket, but a process reads it."""
    path = runtime_dir / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(TransportError, match="in use"):
            clear_socket(path)


def test_file_that_is_no_socket_is_left(runtime_dir: Path) -> None:
    """A wrong path must not delete a file."""
    path = runtime_dir / "precious"
    path.write_text("data")
    with pytest.raises(TransportError, match="not a socket"):
        clear_socket(path)
    assert path.read_text() == "data"


def test_absent_path_is_free(runtime_dir: Path) -> None:
    """The usual case: there is nothing to remove."""
    clear_socket(runtime_dir / "x.sock")
    assert owner_of(runtime_dir / "x.sock") is None


def test_path_too_long_is_refused(runtime_dir: Path) -> None:
    """The message has the limit, instead of ENAMETOOLONG."""
    with pytest.raises(UsageError, match="at most 107"):
        clear_socket(runtime_dir / ("x" * 107))


def test_claimed_directory_is_private_whatever_the_umask(runtime_dir: Path) -> None:
    """N1: only its user may enter the directory; the directories above it are not writable by others."""
    directory = runtime_dir / "deep" / "er"
    before = os.umask(0)
    try:
        RuntimeClaim(directory).release()
    finally:
        os.umask(before)
    made = (directory, directory / "guests", directory / "lock", runtime_dir / "deep")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in made]
    assert modes == [0o700, 0o700, 0o600, 0o755]


def test_stale_sockets_of_a_switch_go(runtime_dir: Path) -> None:
    """The owner of the lock removes them; releasing twice is harmless."""
    RuntimeClaim(runtime_dir).release()
    bound(runtime_dir / "control.sock").close()
    bound(runtime_dir / "guests" / "alpha.sock").close()
    claim = RuntimeClaim(runtime_dir)
    assert not claim.files.control.exists()
    assert not claim.files.guest_socket("alpha").exists()
    claim.release()
    claim.release()


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        (0o1777, "is used by other users too; choose a directory of its own"),
        (0o777, "is used by other users too"),
        (0o2770, "is used by other users too"),
        (0o755, r"is open to other users \(mode 0755\); choose a directory of its own"),
        (0o710, r"is open to other users \(mode 0710\)"),
    ],
)
def test_shared_directory_is_refused_and_left_as_it_is(
    runtime_dir: Path, mode: int, why: str
) -> None:
    """N1: a switch in `/tmp` must not keep other users from it; the message says what to do instead."""
    shared = runtime_dir / "shared"
    shared.mkdir()
    (shared / "file").touch()
    shared.chmod(mode)
    with pytest.raises(TransportError, match=why) as caught:
        RuntimeClaim(shared)
    assert f"runtime_dir= or VSOCK_RUNTIME_DIR, for example {shared}/vsock" in str(caught.value)
    assert "chmod" not in str(caught.value)
    assert stat.S_IMODE(shared.stat().st_mode) == mode
    assert [path.name for path in shared.iterdir()] == ["file"]


def test_open_directory_with_nothing_in_it_may_be_closed(runtime_dir: Path) -> None:
    """N1: chmod is proposed only for an empty directory."""
    runtime_dir.chmod(0o755)
    with pytest.raises(TransportError, match=f"or close this one: chmod 700 {runtime_dir}"):
        RuntimeClaim(runtime_dir)
    assert stat.S_IMODE(runtime_dir.stat().st_mode) == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("name", [".", "guests"])
def test_directory_of_another_user_is_refused(runtime_dir: Path, name: str) -> None:
    """N1, S17: root does not use another user's directory either, nor one inside of its own."""
    directory = runtime_dir / "run"
    theirs = directory / name
    theirs.mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    os.chown(theirs, 12345, 12345)
    with pytest.raises(TransportError, match="belongs to uid 12345; choose another with runtime_"):
        RuntimeClaim(directory)
    assert list(theirs.iterdir()) == []


def test_directory_that_has_taken_the_place_of_ours_keeps_its_sockets(runtime_dir: Path) -> None:
    """S17: whoever may write to the directory above can rename ours and put another there."""
    directory, aside = runtime_dir / "run", runtime_dir / "aside"
    claim = RuntimeClaim(directory)
    directory.rename(aside)
    (directory / "guests").mkdir(parents=True)
    for name in ("stream", "guests/alpha.sock"):
        bound(directory / name).close()
        bound(aside / name).close()
    claim.release()
    assert [path.name for path in aside.rglob("*") if path.is_socket()] == []
    left = sorted(path.name for path in directory.rglob("*") if path.is_socket())
    assert left == ["alpha.sock", "stream"]


def test_name_of_a_process_cannot_write_to_a_terminal(runtime_dir: Path) -> None:
    """A process chooses its name itself, and that name is in error messages and in the log."""
    path = runtime_dir / "x.sock"
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    with bound(path) as listener:
        listener.listen()
        comm.write_text("a\nb\x1b[31m")
        try:
            owner = owner_of(path)
        finally:
            comm.write_text(before)
    assert owner
    assert owner.command == "a?b?[31m"


def test_symbolic_link_is_not_followed(runtime_dir: Path) -> None:
    """N1: in `/tmp` every user can make a link to another directory."""
    (runtime_dir / "private").mkdir(mode=0o700)
    (runtime_dir / "link").symlink_to("private")
    with pytest.raises(TransportError, match="is a symbolic link"):
        RuntimeClaim(runtime_dir / "link")
    assert list((runtime_dir / "private").iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "guests"])
def test_links_inside_are_not_followed(runtime_dir: Path, name: str) -> None:
    """N1: through a link no lock is written and no socket removed."""
    aside = runtime_dir / "aside"
    target = aside / "precious"
    if name == "lock":
        aside.mkdir()
        target.write_text("data")
        (runtime_dir / name).symlink_to(target)
    else:
        target.mkdir(parents=True)
        (runtime_dir / name).symlink_to(target)
        RuntimeClaim(runtime_dir / "other").release()  # shows that there is no other obstacle
    with pytest.raises(TransportError, match=name if name == "guests" else "runtime directory"):
        RuntimeClaim(runtime_dir)
    assert target.is_dir() or target.read_text() == "data"


@pytest.mark.parametrize("name", ["stream", "control.sock", "guests/monitor.sock"])
def test_sockets_of_others_are_left(runtime_dir: Path, name: str) -> None:
    """N1: a private directory that no switch has used may contain other files of the same names."""
    path = runtime_dir / name
    path.parent.mkdir(exist_ok=True)
    with bound(path) as theirs:
        theirs.listen()
        with pytest.raises(
            TransportError, match="of something else; choose a directory of its own"
        ) as caught:
            RuntimeClaim(runtime_dir)
    assert caught.value.errno == errno.EEXIST
    assert path.exists()
    assert not (runtime_dir / "lock").exists()


def test_lock_file_of_something_else_is_left(runtime_dir: Path) -> None:
    """N1: an existing file with the name `lock` is not overwritten."""
    (runtime_dir / "lock").write_text("held by the other program\n")
    with pytest.raises(TransportError, match="has a `lock` that is no switch's"):
        RuntimeClaim(runtime_dir)
    assert (runtime_dir / "lock").read_text() == "held by the other program\n"


def test_second_claim_names_the_first_process(runtime_dir: Path) -> None:
    """Two switches in one directory would remove each other's sockets."""
    claim = RuntimeClaim(runtime_dir)
    with pytest.raises(TransportError, match=f"another switch .* process {os.getpid()} ") as caught:
        RuntimeClaim(runtime_dir)
    assert caught.value.errno == errno.EADDRINUSE
    claim.release()
    RuntimeClaim(runtime_dir).release()


def test_file_in_place_of_the_directory_is_named(runtime_dir: Path) -> None:
    """The message has the path that cannot be used."""
    (runtime_dir / "file").write_text("")
    with pytest.raises(TransportError, match="cannot use the runtime directory .*file"):
        RuntimeClaim(runtime_dir / "file" / "below")

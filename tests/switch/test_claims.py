"""Taking socket paths: stale ones are replaced, living ones are left alone and named."""

import errno
import os
import socket
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
    """What a dead process left is no reason not to start."""
    path = runtime_dir / "x.sock"
    bound(path).close()
    clear_socket(path)
    assert not path.exists()


def test_living_socket_is_left_and_its_owner_named(runtime_dir: Path) -> None:
    """The message says which process to look at."""
    path = runtime_dir / "x.sock"
    with bound(path) as listener:
        listener.listen()
        with pytest.raises(TransportError, match=f"in use by process {os.getpid()} ") as caught:
            clear_socket(path)
    assert caught.value.errno == errno.EADDRINUSE
    assert path.exists()


def test_living_socket_with_a_full_queue_is_left(runtime_dir: Path) -> None:
    """A busy process is not a dead one."""
    path = runtime_dir / "x.sock"
    with bound(path) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.listen(0)
        waiting.connect(str(path))
        with pytest.raises(TransportError, match="in use"):
            clear_socket(path)


def test_living_socket_of_another_type_is_left(runtime_dir: Path) -> None:
    """A datagram socket cannot be connected to, but somebody reads it."""
    path = runtime_dir / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(TransportError, match="in use"):
            clear_socket(path)


def test_file_that_is_no_socket_is_left(runtime_dir: Path) -> None:
    """A typing error in a path must not cost a file."""
    path = runtime_dir / "precious"
    path.write_text("data")
    with pytest.raises(TransportError, match="not a socket"):
        clear_socket(path)
    assert path.read_text() == "data"


def test_absent_path_is_free(runtime_dir: Path) -> None:
    """The usual case needs nothing done."""
    clear_socket(runtime_dir / "x.sock")
    assert owner_of(runtime_dir / "x.sock") is None


def test_path_too_long_is_refused(runtime_dir: Path) -> None:
    """The limit is said in words, not as ENAMETOOLONG from somewhere below."""
    with pytest.raises(UsageError, match="at most 107"):
        clear_socket(runtime_dir / ("x" * 107))


def test_claimed_directory_is_private_and_empty_of_sockets(runtime_dir: Path) -> None:
    """Who owns the lock owns the sockets, so stale ones go at once."""
    directory = runtime_dir / "deep" / "er"
    directory.mkdir(parents=True, mode=0o755)
    bound(directory / "control.sock").close()
    claim = RuntimeClaim(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert not claim.files.control.exists()
    claim.release()
    claim.release()


def test_second_claim_names_the_first_process(runtime_dir: Path) -> None:
    """Two switches in one directory would take each other's sockets."""
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

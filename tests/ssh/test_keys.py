"""The user's key pair, and the pinned host keys of guests: plain files that several processes share."""

import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from vsock.errors import HostKeyChanged, UsageError
from vsock.ssh.host_keys import HostKey, HostKeys, pin_name
from vsock.ssh.identity import Identity, state_dir


def new_key(algorithm: str = "ssh-ed25519") -> HostKey:
    """A public key."""
    key = asyncssh.generate_private_key(algorithm)
    return HostKey.parse(key.export_public_key().decode())


@pytest.fixture
def keys(tmp_path: Path) -> HostKeys:
    """No key is pinned yet; the directory is made when one is."""
    return HostKeys(tmp_path / "new/known_hosts")


def test_state_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative XDG_STATE_HOME is ignored, as its specification says."""
    assert state_dir() == tmp_path / "state/vsock"
    for wrong in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", wrong)
        assert state_dir() == Path.home() / ".local/state/vsock"


def test_key_pair_is_made_once_and_only_its_user_can_read_it(tmp_path: Path) -> None:
    """ssh-keygen reads both files and finds that they belong together."""
    identity = Identity(tmp_path / "a/b")
    public = identity.public_key()
    assert identity.public_key() == public
    assert identity.private_file.stat().st_mode & 0o777 == 0o600
    assert identity.directory.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in identity.directory.iterdir()} == {"id_ed25519", "id_ed25519.pub"}
    identity.public_file.unlink()
    assert identity.public_key() == public


def test_new_private_key_has_a_new_public_one(tmp_path: Path) -> None:
    """Where the message about a readable key is followed."""
    identity = Identity(tmp_path)
    before = identity.public_key()
    identity.private_file.unlink()
    assert identity.public_key() != before


def test_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    """The message says what to do."""
    identity = Identity(tmp_path)
    identity.make()
    identity.private_file.chmod(0o640)
    with pytest.raises(UsageError, match=r"mode 0640.*chmod 600"):
        identity.public_key()


def test_processes_that_make_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    """Whoever is first: both files belong together."""
    code = "import sys, pathlib; from vsock.ssh.identity import Identity as I; print(I(pathlib.Path(sys.argv[1])).public_key())"
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {process.communicate(timeout=50)[0] for process in running}
    assert len(said) == 1
    assert said.pop().startswith("ssh-ed25519 ")


@pytest.mark.programs("ssh-keygen")
def test_key_is_one_of_openssh(tmp_path: Path) -> None:
    """ssh-keygen derives the public key from the private one."""
    identity = Identity(tmp_path)
    public = identity.public_key()
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-f", identity.private_file],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert derived.split()[:2] == public.split()[:2]


def test_first_key_is_pinned_and_another_one_refused(keys: HostKeys) -> None:
    """The message has the command that accepts the new one."""
    name, first, second = pin_name("alpha", "/run/vsock"), new_key(), new_key()
    assert keys.of(name) == []
    keys.check(name, first)
    keys.check(name, first)
    with pytest.raises(HostKeyChanged, match="vsock guest host-key alpha --forget") as caught:
        keys.check(name, second)
    assert caught.value.errno == 13
    assert keys.of(name) == [first]
    assert keys.forget(name)
    assert not keys.forget(name)
    keys.check(name, second)
    keys.pin(name, first)
    assert keys.of(name) == [first]


def test_guests_of_two_switches_may_have_one_name(keys: HostKeys, tmp_path: Path) -> None:
    """The directory of the switch is part of the name, by whatever link it is reached."""
    (tmp_path / "link").symlink_to(tmp_path / "run")
    one, other = pin_name("alpha", tmp_path / "run"), pin_name("alpha", "/run/a b%c")
    assert pin_name("alpha", tmp_path / "link") == one
    assert other == "alpha@/run/a%20b%25c"
    keys.check(one, first := new_key())
    keys.check(other, second := new_key("ecdsa-sha2-nistp256"))
    assert (keys.of(one), keys.of(other)) == ([first], [second])


def test_processes_that_pin_at_once_lose_nothing(keys: HostKeys, tmp_path: Path) -> None:
    """Each waits for the others."""
    code = (
        "import sys, pathlib; from vsock.ssh.host_keys import *\n"
        "HostKeys(pathlib.Path(sys.argv[1])).check(sys.argv[2], HostKey.parse(sys.argv[3]))"
    )
    key = str(new_key())
    names = [f"guest{number}@/run" for number in range(8)]
    path = str(tmp_path / "new/known_hosts")
    running = [subprocess.Popen([sys.executable, "-c", code, path, name, key]) for name in names]
    assert [process.wait(50) for process in running] == [0] * 8
    assert all(str(keys.of(name)[0]) == key for name in names)


@pytest.mark.parametrize(
    "text",
    [
        *("", "ssh-ed25519", "ssh-ed25519 !", "ssh-ed25519 AAAA", "a b c", "-----BEGIN"),
        "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAICM8PmTlx/I6xnwksKyt+oQDOUMMp3o2l/gemRvQFXZZ",
        f"ssh-ed25519 {'A' * 100_000}",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """Also a key whose type is not the one it says."""
    with pytest.raises(UsageError):
        HostKey.parse(text)


def test_damaged_file_is_named_with_the_line(keys: HostKeys, tmp_path: Path) -> None:
    """Comments are no fault."""
    keys.check("alpha@/run", new_key())
    with (tmp_path / "new/known_hosts").open("a") as file:
        file.write("# a comment\n\nbeta@/run nonsense\n")
    with pytest.raises(UsageError, match="known_hosts, line 4: this is no public key"):
        keys.of("beta@/run")

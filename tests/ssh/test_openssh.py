"""OpenSSH's own programs and guests: what `vsock ssh-config` prints, and `vsock ssh-known-hosts`, which ssh asks."""

import asyncio
import subprocess
from pathlib import Path

import asyncssh
import pytest
from tests.ssh.server import SshServer

import vsock
from vsock.cli.main import main
from vsock.guest import Guest
from vsock.ssh.config import install, uninstall
from vsock.ssh.host_keys import HostKey, HostKeys, pin_name
from vsock.ssh.identity import Identity
from vsock.switch import Switch

pytestmark = pytest.mark.programs("ssh", "scp")

DEADLINE = 40


@pytest.fixture
def config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    """A file with what `vsock ssh-config` prints."""
    assert main(["ssh-config"]) == 0
    path = tmp_path / "config"
    path.write_text(capsys.readouterr().out)
    return path


def ssh(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ssh, which must not ask."""
    command = ["ssh", "-F", str(config), "-oBatchMode=yes", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.mark.parametrize("host", ["alpha.vsock", "vsock/3", "vsock%alpha", "joe@vsock/alpha"])
def test_ssh_reaches_a_guest_and_asks_nothing(
    sshd: SshServer, switch: Switch, config: Path, host: str
) -> None:
    """At first use the key is pinned, under the guest's name; the second time it is known."""
    for _ in range(2):
        done = ssh(config, host, "echo from the guest; exit 5")
        assert (done.stdout, done.returncode) == ("from the guest\n", 5), done.stderr
    pinned = HostKeys.of_user().of(pin_name("alpha", switch.runtime_dir))
    assert [str(key) for key in pinned] == [sshd.public_key]


def test_ssh_and_sessions_trust_the_same_keys(
    sshd: SshServer, switch: Switch, config: Path
) -> None:
    """A key that one has pinned, the other does not replace."""
    told = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    HostKeys.of_user().pin(pin_name("alpha", switch.runtime_dir), HostKey.parse(told))
    done = ssh(config, "alpha.vsock", "echo let in")
    assert (done.stdout, done.returncode) == ("", 255)
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert main(["guest", "host-key", "alpha", "--forget"]) == 0
    assert ssh(config, "alpha.vsock", "echo let in").stdout == "let in\n"


def test_other_port_of_a_guest_has_the_same_key(
    sshd: SshServer, guest: Guest, config: Path
) -> None:
    """ssh then writes the host as [alpha.vsock]:2200."""
    assert ssh(config, "alpha.vsock", "true").returncode == 0
    with SshServer(guest, Identity.of_user().public_key(), port=2200, key=sshd.key):
        assert ssh(config, "-p", "2200", "alpha.vsock", "echo here").stdout == "here\n"
    with SshServer(guest, Identity.of_user().public_key(), port=2201):
        assert ssh(config, "-p", "2201", "alpha.vsock", "echo here").returncode == 255


def test_guest_whose_name_has_capitals_is_trusted_as_itself(
    switch: Switch, tmp_path: Path, config: Path
) -> None:
    """ssh writes host names in lower case; the key that was told for Alpha is not one for alpha."""
    switch.add_guest("Delta", 7)
    with Guest(switch.socket_path("Delta")) as delta:
        with SshServer(delta, Identity.of_user().public_key()) as server:
            assert main(["guest", "host-key", "Delta", server.public_key]) == 0
            assert ssh(config, "Delta.vsock", "echo here").stdout == "here\n"
        with SshServer(delta, Identity.of_user().public_key()):
            assert ssh(config, "Delta.vsock", "echo here").returncode == 255


async def test_guest_with_keys_of_several_kinds_is_known_by_the_one_that_was_told(
    guest: Guest, config: Path
) -> None:
    """By ssh and by sessions: both ask for keys of its kind first, though they like others better."""
    told, other = (asyncssh.generate_private_key(f"ecdsa-sha2-nistp{size}") for size in (384, 256))
    better = asyncssh.generate_private_key("ssh-ed25519")
    public = Identity.of_user().public_key()
    with SshServer(guest, public, key=told, other_keys=[better, other]) as server:
        assert main(["guest", "host-key", "alpha", server.public_key]) == 0
        done = await asyncio.to_thread(ssh, config, "alpha.vsock", "echo here")
        assert done.stdout == "here\n", done.stderr
        async with vsock.guest_session("alpha") as session:
            assert (await session.run("echo here")).stdout == "here\n"


def test_host_key_is_told_shown_and_forgotten(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In advance, from a file of the guest's disk for instance."""
    told = asyncssh.generate_private_key("ssh-ed25519", comment="root@alpha").export_public_key()
    assert main(["guest", "host-key", "alpha"]) == 1
    assert capsys.readouterr().err.startswith("vsock: no host key of alpha is pinned")
    assert main(["guest", "host-key", "alpha", told.decode()]) == 0
    assert capsys.readouterr().out == " ".join(told.decode().split()[:2]) + "\n"
    assert main(["guest", "host-key", "3"]) == 0
    assert capsys.readouterr().out.startswith("ssh-ed25519 ")
    assert main(["guest", "host-key", "alpha", "--forget"]) == 0
    assert main(["guest", "host-key", "alpha", "--forget"]) == 1


def test_configuration_is_included_once_and_removed_again(tmp_path: Path) -> None:
    """What is in ~/.ssh/config stays, behind our line; its mode too, and a link stays one."""
    (tmp_path / "dotfiles").write_text("Host other\n    User me\n")
    (tmp_path / "dotfiles").chmod(0o640)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").symlink_to(tmp_path / "dotfiles")
    for _ in range(2):
        install("Host *.vsock\n", tmp_path)
    ours = tmp_path / "state/vsock/ssh_config"
    assert ours.read_text() == "Host *.vsock\n"
    text = f"Include {ours}\nHost other\n    User me\n"
    assert (tmp_path / ".ssh/config").read_text() == text
    assert (tmp_path / ".ssh/config").is_symlink()
    assert (tmp_path / "dotfiles").stat().st_mode & 0o777 == 0o640
    assert len(uninstall(tmp_path)) == 2
    assert (tmp_path / "dotfiles").read_text() == "Host other\n    User me\n"
    assert uninstall(tmp_path) == []

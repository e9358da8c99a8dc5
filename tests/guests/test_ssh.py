"""Unmodified OpenSSH to sshd in a real guest, through `vsock ssh-proxy`."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsock.demo.places import LinuxPlace

DEADLINE = 60
SIZE = 4 << 20

UntilConnected = Callable[[int, int], Any]


@pytest.fixture(autouse=True)
def host_programs(host_programs: None) -> None:
    """Skip these tests if the programs of OpenSSH are not installed."""


@pytest.fixture
def ssh_config(furnished: LinuxPlace, in_guest: Callable[[str], Any], tmp_path: Path) -> Path:
    """sshd in the guest behind socat, on port 22; a configuration for ssh with the keys."""
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True
        )
    files = {
        "/tmp/host": (tmp_path / "host").read_text(),
        "/tmp/authorized": (tmp_path / "user.pub").read_text(),
        "/tmp/sshd_config": "HostKey /tmp/host\nAuthorizedKeysFile /tmp/authorized\nStrictModes no\n"
        "PermitRootLogin yes\nUsePAM no\nSubsystem sftp /usr/lib/openssh/sftp-server\n",
    }
    furnished.guest.call(write_files, files)
    in_guest("exec socat VSOCK-LISTEN:22,fork EXEC:'/usr/sbin/sshd -i -e -f /tmp/sshd_config'")
    known = (tmp_path / "host.pub").read_text().split()
    (tmp_path / "known").write_text(f"* {known[0]} {known[1]}\n")
    config = tmp_path / "config"
    config.write_text(f"""
Host vsock/* vsock%*
    ProxyCommand {sys.executable} -m vsock.cli ssh-proxy --timeout 20 %h %p
    CheckHostIP no
    User root
    BatchMode yes
    IdentityFile {tmp_path / "user"}
    IdentitiesOnly yes
    UserKnownHostsFile {tmp_path / "known"}
""")
    return config


def write_files(files: dict[str, str]) -> None:
    """In the guest: write these files; sshd also needs its user and an empty folder."""
    import pathlib

    for name, content in files.items():
        pathlib.Path(name).write_text(content)
        pathlib.Path(name).chmod(0o600)
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    users = pathlib.Path("/etc/passwd")
    if "sshd" not in users.read_text():
        users.write_text(users.read_text() + "sshd:x:100:65534::/run/sshd:/bin/false\n")


@pytest.mark.parametrize("passing", ["yes", "no"])
@pytest.mark.parametrize("host", ["vsock/uml", "vsock/{}"])
def test_ssh_runs_a_command_in_the_guest(
    furnished: LinuxPlace,
    ssh_config: Path,
    until_connected: UntilConnected,
    passing: str,
    host: str,
) -> None:
    """By name and by CID; with the descriptor passed to ssh, and with `vsock ssh-proxy` copying."""
    until_connected(furnished.cid, 22).close()
    ended = subprocess.run(
        [
            *("ssh", "-F", str(ssh_config), f"-oProxyUseFdpass={passing}"),
            *(host.format(furnished.cid), "cat; uname -r; exit 7"),
        ],
        input="from the host\n",
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.stdout == f"from the host\n{furnished.guest.kernel_release}\n", ended.stderr
    assert ended.returncode == 7


def test_scp_copies_a_file_into_the_guest(
    furnished: LinuxPlace, ssh_config: Path, until_connected: UntilConnected, tmp_path: Path
) -> None:
    """Over SFTP; with a percent sign, because scp takes a name with a slash before the colon for a file."""
    until_connected(furnished.cid, 22).close()
    (tmp_path / "file").write_bytes(os.urandom(SIZE))
    subprocess.run(
        [
            *("scp", "-q", "-F", str(ssh_config), "-oProxyUseFdpass=yes"),
            *(str(tmp_path / "file"), "vsock%uml:/tmp/copied"),
        ],
        check=True,
        timeout=DEADLINE,
    )
    sent = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert furnished.guest.run("sha256sum /tmp/copied").stdout.split()[0] == sent

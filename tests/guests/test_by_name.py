"""Unmodified programs of this host reach a stock Debian 13 as `debian.vsock`, by the lines of `vsock ssh-config --install`.

They get no option for that: their user has a home of its own, with the lines in its ~/.ssh/config. OpenSSH takes the
home from the list of users and not from HOME, so nss_wrapper, which is made for tests, gives the programs such a list.
The user also has OpenSSH share one connection (ControlMaster), as many have: an emulated guest computes long for a login.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.guests.conftest import SwitchProcess
from tests.programs import need, not_to_be_had

from vsock.testing.debian import DebianGuest
from vsock.testing.plugin import DEBIAN

HOST = f"{DEBIAN}.vsock"
SECONDS = 90
SIZE = 1 << 20
LARGE = 24 << 20
SHARED = """
Host *.vsock
    ControlMaster auto
    ControlPath ~/.ssh/%C
    ControlPersist yes
"""
BIN = Path(sys.executable).parent
WRAPPER = "libnss_wrapper.so"
COMMITTER = {"NAME": "A User", "EMAIL": "user@example.org"}


class Host:
    """This machine, as it is for a user with the lines of `vsock ssh-config` in ~/.ssh/config."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self.home = home
        self._environment = environment

    def run(self, *words: str | Path, given: bytes = b"", cwd: Path | None = None) -> bytes:
        """The output of a program that succeeds."""
        done = self.end(*words, given=given, cwd=cwd)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def end(
        self, *words: str | Path, given: bytes = b"", cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end."""
        return subprocess.run(
            words,
            input=given,
            capture_output=True,
            timeout=SECONDS,
            env=self._environment,
            cwd=cwd or self.home,
            check=False,
        )

    def start(self, *words: str | Path) -> "subprocess.Popen[bytes]":
        """Start a program whose output is read."""
        return subprocess.Popen(words, stdout=subprocess.PIPE, env=self._environment, cwd=self.home)

    def in_guest(self, line: str) -> str:
        """The output of a line for the guest's shell."""
        return self.run("ssh", HOST, line).decode().strip()


@pytest.fixture(scope="module")
def host(vsock_switch: SwitchProcess, state_home: Path, debian: DebianGuest) -> Iterator[Host]:
    """The machine, with the lines installed."""
    need(["ssh", "scp", "sftp"])
    home = Path(tempfile.mkdtemp(prefix="vsock-home-"))  # a short path: sockets are in it
    passwd = home / "passwd"
    passwd.write_text(f"user:x:{os.getuid()}:{os.getgid()}:A user:{home}:/bin/sh\n")
    environment = {
        **os.environ,
        **{
            f"GIT_{who}_{what}": COMMITTER[what]
            for who in ("AUTHOR", "COMMITTER")
            for what in COMMITTER
        },
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "LD_PRELOAD": WRAPPER,
        "NSS_WRAPPER_GROUP": "/etc/group",
        "NSS_WRAPPER_PASSWD": str(passwd),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "VSOCK_RUNTIME_DIR": str(vsock_switch.runtime_dir),
        "XDG_STATE_HOME": str(state_home),
    }
    found = Host(home, environment)
    try:
        if str(home).encode() not in found.end("getent", "passwd", str(os.getuid())).stdout:
            not_to_be_had(f"not installed: {WRAPPER} (Debian: libnss-wrapper)")
        found.run(sys.executable, "-m", "vsock.cli", "ssh-config", "--install")
        with (home / ".ssh/config").open("a") as config:
            config.write(SHARED)
        yield found
        found.end("ssh", "-O", "exit", HOST)
    finally:
        shutil.rmtree(home)


@pytest.fixture
def there(host: Host) -> Iterator[str]:
    """A folder in the guest."""
    folder = host.in_guest("mktemp -d")
    yield folder
    host.in_guest(f"rm -rf {folder}")


def digest(data: bytes) -> str:
    """As sha256sum writes it."""
    return hashlib.sha256(data).hexdigest()


def test_ssh_runs_a_command(host: Host) -> None:
    """Its input, output, errors and exit code are those of the command."""
    done = host.end(
        "ssh", HOST, "cat; cat /etc/debian_version; echo error >&2; exit 7", given=b"in\n"
    )
    assert done.stdout.startswith(b"in\n13"), done.stderr
    assert (done.returncode, done.stderr) == (7, b"error\n")


def test_scp_and_sftp_copy_files(host: Host, there: str, tmp_path: Path) -> None:
    """There by the one, back by the other."""
    data = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(data)
    host.run("scp", "-q", tmp_path / "file", f"{HOST}:{there}/by scp")
    batch = f'cd {there}\nrename "by scp" renamed\nget renamed {tmp_path}/back\nput {tmp_path}/file by-sftp\n'
    host.run("sftp", "-q", "-b", "-", HOST, given=batch.encode())
    assert (tmp_path / "back").read_bytes() == data
    assert host.in_guest(f"cd {there}; ls; sha256sum <by-sftp") == (
        f"by-sftp\nrenamed\n{digest(data)}  -"
    )


@pytest.mark.programs("rsync")
def test_rsync_that_was_killed_goes_on_where_it_was(host: Host, there: str, tmp_path: Path) -> None:
    """Its other end dies when a third is there; the second run sends exactly the rest."""
    data = os.urandom(LARGE)
    (tmp_path / "large").write_bytes(data)
    words = ("rsync", "--append-verify", "--stats", "--no-human-readable", tmp_path / "large")
    target = f"{HOST}:{there}/"
    size = f"stat -c %s {there}/large 2>/dev/null || echo 0"
    kill = f'echo waiting; until [ "$({size})" -gt {LARGE // 3} ]; do sleep 0.01; done; pkill -KILL -x rsync'
    with host.start("ssh", HOST, kill) as killer:
        assert killer.stdout
        assert killer.stdout.readline() == b"waiting\n"
        # Slow enough that it cannot be done before it is killed.
        done = host.end(*words, target, "--bwlimit=4m")
        assert killer.wait(SECONDS) == 0
    assert done.returncode != 0
    arrived = int(host.in_guest(size))
    assert LARGE // 3 < arrived < LARGE
    said = host.run(*words, target).decode()
    assert re.findall(r"^Literal data: (\d+) bytes$", said, re.MULTILINE) == [str(LARGE - arrived)]
    assert host.in_guest(f"cd {there}; ls -A; sha256sum <large") == f"large\n{digest(data)}  -"


@pytest.mark.programs("sshfs", "fusermount3")
def test_sshfs_mounts_a_folder(host: Host, there: str, tmp_path: Path) -> None:
    """Files go both ways."""
    data = os.urandom(SIZE)
    folder = tmp_path / "folder"
    folder.mkdir()
    host.run("sshfs", f"{HOST}:{there}", folder)
    try:
        (folder / "file").write_bytes(data)
        assert host.in_guest(f"cd {there}; sha256sum <file; echo text >new") == f"{digest(data)}  -"
        assert (folder / "new").read_text() == "text\n"
    finally:
        host.run("fusermount3", "-u", folder)
    assert list(folder.iterdir()) == []


@pytest.mark.programs("git")
def test_git_clones_a_repository_of_the_guest(host: Host, there: str, tmp_path: Path) -> None:
    """And what is committed here is pushed there."""
    clone = tmp_path / "clone"
    host.in_guest(repository(f"{there}/work", "theirs"))
    host.in_guest(f"git clone -q --bare {there}/work {there}/bare")
    host.run("git", "clone", "-q", f"{HOST}:{there}/bare", clone)
    host.run("git", "commit", "-q", "--allow-empty", "-m", "ours", cwd=clone)
    host.run("git", "push", "-q", cwd=clone)
    assert host.in_guest(f"git -C {there}/bare log --format='%an %s'") == (
        f"{COMMITTER['NAME']} ours\nGuest theirs"
    )


@pytest.mark.programs("git", "socat")
def test_git_in_the_guest_clones_a_repository_of_the_host(
    host: Host, there: str, tmp_path: Path
) -> None:
    """Its server is reached by a port of the guest that ssh forwards here, in the connection that is open already."""
    host.run("sh", "-c", repository(str(tmp_path / "ours"), "ours"))
    path = host.home / "git"
    forward = ("-R", f"9418:{path}", HOST)
    server = f"git daemon --inetd --export-all --base-path={tmp_path}"
    with host.start("socat", f"UNIX-LISTEN:{path},fork", f"EXEC:{server}") as socat:
        try:
            until_exists(path)
            host.run("ssh", "-O", "forward", *forward)
            host.in_guest(f"git clone -q git://127.0.0.1/ours {there}/clone")
            host.run("ssh", "-O", "cancel", *forward)
        finally:
            socat.terminate()
    log = "log --format='%an %s %H'"
    cloned = host.in_guest(f"git -C {there}/clone {log}")
    assert cloned.startswith(f"{COMMITTER['NAME']} ours ")
    assert cloned == host.run("sh", "-c", f"git -C {tmp_path}/ours {log}").decode().strip()


def repository(path: str, message: str) -> str:
    """The line for a shell that makes a repository with a commit; whose it is, the environment may say otherwise."""
    who = "-c user.name=Guest -c user.email=guest@example.org"
    return f"git init -q -b main {path} && git {who} -C {path} commit -q --allow-empty -m {message}"


def until_exists(path: Path) -> None:
    """Wait for a file."""
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ansible_pings_the_guest(host: Host) -> None:
    """A module of Ansible runs in the guest's Python; no setting of its connection but those of OpenSSH."""
    if not (BIN / "ansible").exists():
        not_to_be_had(f"not installed: ansible in {BIN} (PyPI: ansible-core)")
    (host.home / "hosts").write_text(f"{HOST} ansible_python_interpreter=/usr/bin/python3\n")
    (host.home / ".ansible.cfg").write_text(
        "[defaults]\ninventory = ~/hosts\n[ssh_connection]\nssh_args =\n"
    )
    said = host.run("ansible", HOST, "-m", "ping").decode()
    assert said.startswith(f"{HOST} | SUCCESS => "), said
    assert json.loads(said.partition(" => ")[2])["ping"] == "pong"

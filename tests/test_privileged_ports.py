"""Ports below 1024 are for root and for programs with CAP_NET_BIND_SERVICE; the switch checks that."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from tests.programs import need

import vsock
from vsock import CID_ANY

NOBODY = "65534"
BIND = """
import os, socket, struct
for port in (0, 1023, 1024):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(os.environ["VSOCK_RUNTIME_DIR"] + "/stream")
        sock.sendall(struct.pack("<BBHIIIQII", 1, 1, 0, 0xFFFFFFFF, port, 0, 0, 0, 0))
        print(struct.unpack_from("<H", sock.recv(32), 2)[0])
"""
"""A program that another user can run: it needs the standard library only."""


@pytest.fixture
def open_switch(switch, runtime_dir):
    """A switch that every user of this machine may use."""
    runtime_dir.chmod(0o711)
    for name in ("stream", "seqpacket"):
        (runtime_dir / name).chmod(0o666)
    return switch


def bind_as(*how: str) -> list[int]:
    """The errnos of binding ports 0, 1023 and 1024 in a program started by setpriv with `how`."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to start a program of another user")
    need(["setpriv"])
    # Another user may not be allowed to enter the directory of this interpreter.
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    command = ["setpriv", *how, python, "-I", "-c", BIND]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Permission denied" in done.stderr:
        pytest.skip("another user cannot run an interpreter")
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_user_without_the_capability_is_refused_privileged_ports(open_switch):
    """EACCES below 1024, as from the kernel."""
    errnos = bind_as("--reuid", NOBODY, "--clear-groups")
    assert errnos == [errno.EACCES, errno.EACCES, 0]


def test_permission_is_asked_before_a_conflict(open_switch):
    """A port in use is EACCES, too, for a user who may not have it: whether it is in use stays unknown."""
    with vsock.socket() as holder:
        holder.bind((CID_ANY, 1023))
        errnos = bind_as("--reuid", NOBODY, "--clear-groups")
    assert errnos == [errno.EACCES, errno.EACCES, 0]


def test_user_with_the_capability_may_bind_any_port(open_switch):
    """The capability of the calling process counts, not its user."""
    grant = ("--inh-caps", "+net_bind_service", "--ambient-caps", "+net_bind_service")
    errnos = bind_as("--reuid", NOBODY, "--clear-groups", *grant)
    assert errnos == [0, 0, 0]


def test_capability_in_a_user_namespace_of_ones_own_is_worth_nothing(open_switch):
    """There every process has all capabilities; the kernel's `capable` does not count them either."""
    made = ("setpriv", "--reuid", NOBODY, "--clear-groups", "unshare", "--user", "--map-root-user")
    if subprocess.run([*made, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces for users here")
    errnos = bind_as("--reuid", NOBODY, "--clear-groups", *made[4:])
    assert errnos == [errno.EACCES, errno.EACCES, 0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_may_bind_privileged_ports_and_conflicts_come_after_permission(switch):
    """Root binds port 0 like any other number."""
    with vsock.socket() as first, vsock.socket() as second:
        first.bind((CID_ANY, 0))
        assert first.getsockname() == (CID_ANY, 0)
        with pytest.raises(OSError, match="in use") as caught:
            second.bind((CID_ANY, 0))
        assert caught.value.errno == errno.EADDRINUSE

"""Work in a guest: `vsock exec`, `vsock cp` and `vsock forward`, as a user runs them, with our SSH server in the guest.

The guests of the demo have none, so `vsock-sshd` is sent there, with a key of the demo's own. This user's keys are not
used, and no host key is pinned for this user.
"""

import hashlib
import os
import socket
import stat
import tarfile
from io import BytesIO

from vsock.demo.lab import Lab
from vsock.demo.places import ANSWER_SECONDS, LinuxPlace, run_pair
from vsock.demo.programs import greet_by_tcp, receive_files, send_file
from vsock.errors import VsockError
from vsock.ssh.guest_server import PROGRAM, files_for_guest
from vsock.ssh.identity import Identity

__all__ = ["check_copy", "check_exec", "check_forward", "prepare"]

SIZE = 4 << 20
GREETING = "a greeting by TCP"


def prepare(lab: Lab) -> str | None:
    """Make the files that the server needs in a guest; if that is not possible, return why."""
    try:
        files = files_for_guest(Identity(lab.state_home / "vsock"))
    except (VsockError, OSError) as error:
        return f"no commands in guests: {error}"
    with tarfile.open(lab.server_archive, "w") as archive:
        for file in files:
            entry = tarfile.TarInfo(file.path)
            entry.mode, entry.size = stat.S_IMODE(file.mode), len(file.content)
            archive.addfile(entry, BytesIO(file.content))
    return None


def check_exec(lab: Lab, guest: LinuxPlace) -> str:
    """Start the server, and run a command."""
    port = lab.port()
    run_pair(
        guest,
        (receive_files, port),
        lab.host,
        (send_file, guest.cid, port, str(lab.server_archive)),
    )
    guest.guest.spawn(f"/{PROGRAM}")
    lab.command("wait", guest.name, "--port=22", f"--timeout={ANSWER_SECONDS:g}")
    said = lab.command("exec", guest.name, "--", "uname", "-sr").decode().strip()
    if said != f"Linux {guest.guest.kernel_release}":
        raise AssertionError(f"another kernel answers: {said}")
    lab.server_guest = guest.name
    return f"`vsock exec {guest.name} -- uname -sr` says {said}"


def check_copy(lab: Lab, guest: LinuxPlace) -> str:
    """Copy a file there and back."""
    sent = os.urandom(SIZE)
    lab.command("cp", "-", f"{guest.name}:/tmp/demo", given=sent)
    back = lab.command("cp", f"{guest.name}:/tmp/demo", "-")
    if back != sent:
        raise AssertionError("the file that came back is not the one that was sent")
    digest = hashlib.sha256(back).hexdigest()
    return f"`vsock cp` took {SIZE >> 20} MiB to {guest.name}:/tmp/demo and back, SHA-256 {digest[:8]}…"


def check_forward(lab: Lab, guest: LinuxPlace) -> str:
    """Reach a server of the guest that listens on its loopback, with TCP."""
    port = lab.port()
    server = guest.start(greet_by_tcp, port, GREETING)
    server.read_line(ANSWER_SECONDS)
    words = ("forward", "-L", f"127.0.0.1:0:127.0.0.1:{port}", guest.name)
    forward = lab.start_command(*words)
    ours = forward.read_line(ANSWER_SECONDS).split()[1]
    with socket.create_connection(
        ("127.0.0.1", int(ours.rpartition(":")[2])), ANSWER_SECONDS
    ) as sock:
        said = sock.makefile("rb").read().decode()
    server.result(ANSWER_SECONDS)
    forward.end()
    if said != GREETING:
        raise AssertionError(f"another server answers: {said!r}")
    return (
        f"after `vsock forward -L`, TCP port {port} of {guest.name} answers at {ours} of this host"
    )

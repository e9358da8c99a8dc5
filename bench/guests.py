"""Real guests with sshd on vsock, for figures of commands: User-Mode Linux and QEMU.

User-Mode Linux runs OpenSSH behind socat, as in `tests/guests`; QEMU runs a stock Debian 13.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.agents import AgentError
from bench.lab import Lab
from vsock.perf import ends
from vsock.ssh.identity import Identity

__all__ = ["FROM", "INTO", "PERF", "CommandGuest", "debian", "uml"]

SECONDS = 400
INTO, FROM = 7001, 7002
"""Ports of the guest, for `vsock cat`: behind one is `cat > file`, behind the other `cat file`."""

PERF = ends.PORT
"""A port of User-Mode Linux, where `vsock.perf.ends` serves."""

SSHD = "exec socat VSOCK-LISTEN:22,fork EXEC:'/usr/sbin/sshd -i -e -f /tmp/sshd_config'"
SSHD_CONFIG = (
    "HostKey /tmp/host\nAuthorizedKeysFile /tmp/authorized\nStrictModes no\nPermitRootLogin yes\nUsePAM no\n"
    "Subsystem sftp /usr/lib/openssh/sftp-server\n"
)
SERVE_TCP = """
mkdir -p /run/systemd/network
printf '[Match]\\nName=e*\\n[Network]\\nAddress=10.0.2.15/24\\n' > /run/systemd/network/bench.network
systemctl start systemd-networkd
"""
PERL_CAT = """
$SIG{CHLD}="IGNORE"; socket(L,40,1,0); bind(L,pack("SSLLx4",40,0,$ARGV[0],0xffffffff)); listen(L,8);
while(accept(S,L)){if(!fork){open(STDIN,"<&S");open(STDOUT,">&S");exec "sh","-c",$ARGV[1]} close(S)}
"""


@dataclass(frozen=True)
class CommandGuest:
    """A booted guest with sshd on vsock, and a folder of the host for files."""

    name: str
    cid: int
    environment: dict[str, str]
    scratch: Path
    tcp_port: int | None = None
    """A port of 127.0.0.1 that leads to the guest's sshd over QEMU's user-mode network."""

    def vsock(self, *words: str, **options: Any) -> None:
        """Run a command of `vsock`."""
        self.command(sys.executable, "-m", "vsock.cli", *words, **options)

    def command(self, *words: str, **options: Any) -> None:
        """Run a command with this guest's switch and keys.

        Raises:
            AgentError: it failed.
        """
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **options}
        done = subprocess.run(
            words,
            env=self.environment,
            stderr=subprocess.PIPE,
            timeout=SECONDS,
            check=False,
            text=True,
            **options,
        )
        if done.returncode != 0:
            raise AgentError(f"{words[0]}: {done.stderr.strip()[-200:]}")

    def run(self, line: str) -> None:
        """Run a line for the guest's shell."""
        self.vsock("exec", self.name, "--", "sh", "-c", line)

    def scp_over_tcp(self) -> list[str]:
        """The words of scp that its files follow; the user is root at 127.0.0.1."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        key = Identity(self.scratch / "state/vsock").private_file
        words = ["scp", "-q", "-F", "none", "-P", str(self.tcp_port), "-i", str(key)]
        return [*words, *(word for option in options for word in ("-o", option))]

    def serve_cat(self, path: str, runner: Callable[[int, str], None]) -> None:
        """Serve both ports."""
        runner(INTO, f"cat > {path}.new")
        runner(FROM, f"cat {path}")


def _prepared(lab: Lab) -> tuple[Path, dict[str, str]]:
    """A folder, and the environment with a key of its own."""
    scratch = lab.directory()
    scratch.mkdir()
    return scratch, {**os.environ, "XDG_STATE_HOME": str(scratch / "state")}


@contextmanager
def uml(lab: Lab, memory_mib: int = 1024) -> Iterator[CommandGuest]:
    """Boot User-Mode Linux with OpenSSH."""
    from vsock import testing
    from vsock.testing.images import find_programs

    scratch, environment = _prepared(lab)
    identity = Identity(scratch / "state/vsock")
    archive = find_programs()
    keygen = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scratch / "host"))
    subprocess.run(keygen, check=True)
    with ExitStack() as stack:
        device = stack.enter_context(lab.make("ours", 1))
        (seat,) = device.seats
        made = testing.boot(str(seat.socket), "uml", vmm="uml", memory_mib=memory_mib)
        booted: Any = stack.enter_context(made)
        environment["VSOCK_RUNTIME_DIR"] = str(device.programs)
        guest = CommandGuest(f"g{seat.cid}", seat.cid, environment, scratch)
        _furnish(guest, booted, archive)
        files = {
            "/tmp/host": (scratch / "host").read_text(),
            "/tmp/authorized": identity.public_key(),
            "/tmp/sshd_config": SSHD_CONFIG,
        }
        booted.call(_write_files, files)
        booted.spawn(SSHD)
        _write_ssh_config(guest)
        guest.vsock("wait", guest.name, "--ssh", "--timeout", "60")

        def serve(port: int, line: str) -> None:
            booted.spawn(f"exec socat VSOCK-LISTEN:{port},fork SYSTEM:'{line}',nofork")
            guest.vsock("wait", guest.name, "--port", str(port), "--timeout", "60")

        guest.serve_cat("/tmp/large", serve)
        server = booted.spawn_python(Path(ends.__file__).read_text(), "server", str(PERF))
        if (said := server.read_line()) != "listening":
            raise AgentError(f"{guest.name}: {said}")
        yield guest


def _furnish(guest: CommandGuest, booted: Any, archive: Path) -> None:
    """Give a guest of `make guests` Debian's programs, over vsock."""
    process = booted.spawn_call(_unpack, 2, 7000)
    with archive.open("rb") as file:
        guest.vsock("cat", "-l", "7000", stdin=file)
    process.result(60)


def _unpack(cid: int, port: int) -> None:
    """In the guest."""
    import socket
    import tarfile
    import time

    deadline = time.monotonic() + 30
    while True:
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            connection.connect((cid, port))
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with connection.makefile("rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall("/")


def _write_files(files: dict[str, str]) -> None:
    """In the guest: these files, and sshd's user and folder."""
    import pathlib

    for name, content in files.items():
        pathlib.Path(name).write_text(content)
        pathlib.Path(name).chmod(0o600)
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    users = pathlib.Path("/etc/passwd")
    users.write_text(users.read_text() + "sshd:x:100:65534::/run/sshd:/bin/false\n")


@contextmanager
def debian(lab: Lab) -> Iterator[CommandGuest]:
    """Boot QEMU with a stock Debian 13, which also has a network."""
    from vsock.control.model import NOTIFY_PORT
    from vsock.testing.debian import DebianGuest
    from vsock.vmm import notify_credential, ssh_credentials

    scratch, environment = _prepared(lab)
    key = Identity(scratch / "state/vsock").public_key()
    with ExitStack() as stack:
        device = stack.enter_context(lab.make("ours", 1))
        (seat,) = device.seats
        environment["VSOCK_RUNTIME_DIR"] = str(device.programs)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        guest = CommandGuest(f"g{seat.cid}", seat.cid, environment, scratch, port)
        credentials: dict[str, str | bytes] = {
            **notify_credential(NOTIFY_PORT),
            **ssh_credentials(key, "root"),
        }
        network = [
            *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,netdev=net"),
        ]
        made = DebianGuest(_Sockets(seat.socket), guest.name, credentials, extra=network)
        stack.enter_context(made)
        guest.vsock("wait", guest.name, "--ssh", "--timeout", "300")
        guest.run(SERVE_TCP)
        deadline = time.monotonic() + SECONDS
        while not _answers(port):
            if time.monotonic() > deadline:
                raise AgentError("sshd does not answer over QEMU's user-mode network")
            time.sleep(0.5)
        _write_ssh_config(guest)

        def serve(port: int, line: str) -> None:
            # A service, so that it outlives the session.
            words = ["systemd-run", "-q", "perl", "-e", PERL_CAT, str(port), line]
            guest.vsock("exec", guest.name, "--", *words)
            guest.vsock("wait", guest.name, "--port", str(port), "--timeout", "60")

        guest.serve_cat("/tmp/large", serve)
        yield guest


def _answers(port: int) -> bool:
    """Whether sshd says its version; QEMU itself accepts before there is a network."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


@dataclass(frozen=True)
class _Sockets:
    path: Path

    def socket_path(self, name: str) -> Path:
        return self.path


def _write_ssh_config(guest: CommandGuest) -> None:
    with (guest.scratch / "ssh_config").open("w") as file:
        guest.vsock("ssh-config", stdout=file)

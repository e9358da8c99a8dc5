"""`vsock cp` with real guests, against what else copies: `vsock cat`, ssh's cipher, scp.

Each contender is a command as a user types it, from its start to its end. User-Mode Linux runs OpenSSH behind socat,
as in `tests/guests`; QEMU runs a stock Debian 13.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.agents import AgentError
from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row, alternate

__all__ = ["copies"]

Contenders = dict[str, Callable[[], None]]

MIB = 1 << 20
SECONDS = 400
INTO, FROM = 7001, 7002
"""Ports of the guest, for `vsock cat`: behind one is `cat > file`, behind the other `cat file`."""

SSHD = "exec socat VSOCK-LISTEN:22,fork EXEC:'/usr/sbin/sshd -i -e -f /tmp/sshd_config'"
SSHD_CONFIG = (
    "HostKey /tmp/host\nAuthorizedKeysFile /tmp/authorized\nStrictModes no\nPermitRootLogin yes\nUsePAM no\n"
    "Subsystem sftp /usr/lib/openssh/sftp-server\n"
)
PERL_CAT = """
$SIG{CHLD}="IGNORE"; socket(L,40,1,0); bind(L,pack("SSLLx4",40,0,$ARGV[0],0xffffffff)); listen(L,8);
while(accept(S,L)){if(!fork){open(STDIN,"<&S");open(STDOUT,">&S");exec "sh","-c",$ARGV[1]} close(S)}
"""


def copies(lab: Lab, plan: Plan) -> list[Row]:
    """One large file each way, many small ones, and the memory of the host's side."""
    from vsock import testing

    rows: list[Row] = []
    for name, boot, size, count in (
        ("uml", _uml, 64 if plan.quick else 128, 500 if plan.quick else 10_000),
        ("qemu", _debian, 8 if plan.quick else 128, 50 if plan.quick else 500),
    ):
        try:
            with boot(lab) as guest:
                rows += _rows(name, guest, plan, size * MIB, count)
        except testing.GuestError as error:
            reason = str(error).splitlines()[0]
            rows.append(Row(f"copy {name}", "", {"ours": []}, "vsock.testing", {"ours": reason}))
    return rows


@dataclass(frozen=True)
class _Guest:
    """A booted guest with sshd on vsock, and a folder of the host for files."""

    name: str
    cid: int
    environment: dict[str, str]
    scratch: Path

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

    def serve_cat(self, path: str, runner: Callable[[int, str], None]) -> None:
        """Serve both ports."""
        runner(INTO, f"cat > {path}.new")
        runner(FROM, f"cat {path}")


def _rows(vmm: str, guest: _Guest, plan: Plan, size: int, count: int) -> list[Row]:
    local, there = guest.scratch / "large", "/tmp/large"
    with local.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    remote = f"{guest.name}:{there}"
    guest.vsock("cp", str(local), remote)
    scp = ["scp", "-q", "-F", str(guest.scratch / "ssh_config")]
    back = guest.scratch / "back"
    into: Contenders = {
        "ours": partial(guest.vsock, "cp", str(local), f"{remote}.new"),
        "ours, no verify": partial(guest.vsock, "cp", "--no-verify", str(local), f"{remote}.new"),
        "ours, encrypted": partial(guest.vsock, "cp", "--encrypted", str(local), f"{remote}.new"),
        "vsock cat": partial(_cat, guest, INTO, local, None),
        "scp": partial(guest.command, *scp, str(local), f"{guest.name}.vsock:{there}.new"),
    }
    out: Contenders = {
        "ours": partial(guest.vsock, "cp", remote, str(back)),
        "ours, no verify": partial(guest.vsock, "cp", "--no-verify", remote, str(back)),
        "ours, encrypted": partial(guest.vsock, "cp", "--encrypted", remote, str(back)),
        "vsock cat": partial(_cat, guest, FROM, None, back),
        "scp": partial(guest.command, *scp, f"{guest.name}.vsock:{there}", str(back)),
    }
    rounds = 1 if plan.quick else 3
    rows = []
    for way, contenders in (("h2g", into), ("g2h", out)):
        rates, failures = alternate(_rates(contenders, size / MIB), rounds)
        what = f"a file of {size // MIB} MiB, guest under {vmm}"
        rows.append(Row(f"copy {vmm} {way}", "MiB/s", rates, what, failures))
    ways = (str(local), f"{remote}.new"), (remote, str(back))
    peaks = [_peak(guest, "cp", "-q", *way) for way in ways]
    memory = {"ours": peaks, "vsock --version": [_peak(guest, "--version")]}
    rows.append(Row(f"copy {vmm} memory", "MiB", memory, what, is_less_better=True))
    return [*rows, _small_files(vmm, guest, scp, count, rounds)]


def _rates(contenders: Contenders, amount: float) -> dict[str, Callable[[], float]]:
    def rate(copy: Callable[[], None]) -> float:
        begun = time.monotonic()
        copy()
        return amount / (time.monotonic() - begun)

    return {name: partial(rate, copy) for name, copy in contenders.items()}


def _cat(guest: _Guest, port: int, source: Path | None, target: Path | None) -> None:
    with ExitStack() as stack:
        files = {
            "stdin": stack.enter_context((source or Path(os.devnull)).open("rb")),
            "stdout": stack.enter_context((target or Path(os.devnull)).open("wb")),
        }
        guest.vsock("cat", f"{guest.name}:{port}", **files)


# Not ru_maxrss of the child, which begins with what this process had before exec.
_MEASURED = """
import sys
from vsock.cli.main import main
code = main(sys.argv[1:])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
sys.exit(code)
"""


def _peak(guest: _Guest, *words: str) -> float:
    """The largest resident set of a command of `vsock`, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *words],
        env=guest.environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        raise AgentError(f"vsock {words[0]} ended with {done.returncode}")
    return int(done.stdout.splitlines()[-1]) / 1024


def _small_files(vmm: str, guest: _Guest, scp: list[str], count: int, rounds: int) -> Row:
    tree = guest.scratch / "tree"
    tree.mkdir()
    for number in range(count):
        (tree / f"file {number}").write_bytes(os.urandom(1024))

    def ours(*flags: str) -> None:
        guest.vsock("cp", *flags, str(tree), f"{guest.name}:/tmp/tree")
        guest.run("rm -r /tmp/tree")

    def theirs() -> None:
        guest.command(*scp, "-r", str(tree), f"{guest.name}.vsock:/tmp/tree")
        guest.run("rm -r /tmp/tree")

    contenders: Contenders = {
        "ours": ours,
        "ours, no verify": partial(ours, "--no-verify"),
        "scp -r": theirs,
    }
    rates, failures = alternate(_rates(contenders, count), rounds)
    what = f"{count} files of 1 KiB, guest under {vmm}"
    return Row(f"copy {vmm} small files", "files/s", rates, what, failures)


def _prepared(lab: Lab) -> tuple[Path, dict[str, str]]:
    """A folder, and the environment with a key of its own."""
    scratch = lab.directory()
    scratch.mkdir()
    return scratch, {**os.environ, "XDG_STATE_HOME": str(scratch / "state")}


@contextmanager
def _uml(lab: Lab) -> Iterator[_Guest]:
    from vsock import testing
    from vsock.ssh.identity import Identity
    from vsock.testing.images import find_programs

    scratch, environment = _prepared(lab)
    identity = Identity(scratch / "state/vsock")
    archive = find_programs()
    keygen = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scratch / "host"))
    subprocess.run(keygen, check=True)
    with ExitStack() as stack:
        device = stack.enter_context(lab.make("ours", 1))
        (seat,) = device.seats
        made = testing.boot(str(seat.socket), "uml", vmm="uml", memory_mib=1024)
        booted: Any = stack.enter_context(made)
        environment["VSOCK_RUNTIME_DIR"] = str(device.programs)
        guest = _Guest(f"g{seat.cid}", seat.cid, environment, scratch)
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
        yield guest


def _furnish(guest: _Guest, booted: Any, archive: Path) -> None:
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
def _debian(lab: Lab) -> Iterator[_Guest]:
    from vsock.control.model import NOTIFY_PORT
    from vsock.ssh.identity import Identity
    from vsock.testing.debian import DebianGuest
    from vsock.vmm import notify_credential, ssh_credentials

    scratch, environment = _prepared(lab)
    key = Identity(scratch / "state/vsock").public_key()
    with ExitStack() as stack:
        device = stack.enter_context(lab.make("ours", 1))
        (seat,) = device.seats
        environment["VSOCK_RUNTIME_DIR"] = str(device.programs)
        guest = _Guest(f"g{seat.cid}", seat.cid, environment, scratch)
        credentials: dict[str, str | bytes] = {
            **notify_credential(NOTIFY_PORT),
            **ssh_credentials(key, "root"),
        }
        stack.enter_context(DebianGuest(_Sockets(seat.socket), guest.name, credentials))
        guest.vsock("wait", guest.name, "--ssh", "--timeout", "300")
        guest.run("true")
        _write_ssh_config(guest)

        def serve(port: int, line: str) -> None:
            # A service, so that it outlives the session.
            words = ["systemd-run", "-q", "perl", "-e", PERL_CAT, str(port), line]
            guest.vsock("exec", guest.name, "--", *words)
            guest.vsock("wait", guest.name, "--port", str(port), "--timeout", "60")

        guest.serve_cat("/tmp/large", serve)
        yield guest


@dataclass(frozen=True)
class _Sockets:
    path: Path

    def socket_path(self, name: str) -> Path:
        return self.path


def _write_ssh_config(guest: _Guest) -> None:
    with (guest.scratch / "ssh_config").open("w") as file:
        guest.vsock("ssh-config", stdout=file)

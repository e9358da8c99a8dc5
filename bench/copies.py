"""`vsock cp` with real guests, against what else copies: `vsock cat`, ssh's cipher, scp.

Each contender is a command as a user types it, from its start to its end.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench.agents import AgentError
from bench.guests import FROM, INTO, CommandGuest, debian, uml
from bench.lab import Lab
from bench.plan import Plan
from bench.rows import Row, alternate

__all__ = ["copies"]

Contenders = dict[str, Callable[[], None]]

MIB = 1 << 20


LARGEST_BY_SSH = 256 * MIB
"""What ssh's cipher carries in a round, which must not take minutes."""

UML_MIB = 3584
"""Memory of a guest whose /tmp, in memory, has a file of 1 GiB twice."""


def copies(lab: Lab, plan: Plan) -> Iterator[Row]:
    """One large file each way, many small ones, and the memory of the host's side."""
    from vsock import testing

    uml_with_space = partial(uml, memory_mib=UML_MIB)
    for name, boot, size, count in (
        ("uml", uml_with_space, 64 if plan.quick else 1024, 500 if plan.quick else 10_000),
        ("qemu", debian, 16 if plan.quick else 64, 50 if plan.quick else 500),
    ):
        try:
            with boot(lab) as guest:
                yield from _rows(name, guest, plan, size * MIB, count)
        except (testing.GuestError, AgentError) as error:
            reason = str(error).splitlines()[0]
            yield Row(f"copy {name}", "", {"ours": []}, "vsock.testing", {"ours": reason})


def _rows(vmm: str, guest: CommandGuest, plan: Plan, size: int, count: int) -> Iterator[Row]:
    local, there = guest.scratch / "large", "/tmp/large"
    with local.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    remote = f"{guest.name}:{there}"
    guest.run("mount -o remount,size=80% /tmp")
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
    if size > LARGEST_BY_SSH:
        for contenders in (into, out):
            del contenders["ours, encrypted"], contenders["scp"]
    if guest.tcp_port:
        tcp = guest.scp_over_tcp()
        into["scp, user-mode TCP"] = partial(
            guest.command, *tcp, str(local), f"root@127.0.0.1:{there}.new"
        )
        out["scp, user-mode TCP"] = partial(
            guest.command, *tcp, f"root@127.0.0.1:{there}", str(back)
        )
    rounds = 1 if plan.quick else 3

    def free() -> None:
        """All write a new file; the guest has no memory for a third one."""
        guest.run(f"rm -f {there}.new")
        back.unlink(missing_ok=True)

    for way, contenders in (("h2g", into), ("g2h", out)):
        rates, failures = alternate(_rates(contenders, size / MIB, free), rounds)
        what = f"a file of {size // MIB} MiB, guest under {vmm}"
        yield Row(f"copy {vmm} {way}", "MiB/s", rates, what, failures)
    free()
    ways = (str(local), f"{remote}.new"), (remote, str(back))
    peaks = [_peak(guest, "cp", "-q", *way) for way in ways]
    guest.run(f"rm -f {there}*")
    memory = {"ours": peaks, "vsock --version": [_peak(guest, "--version")]}
    yield Row(f"copy {vmm} memory", "MiB", memory, what, is_less_better=True)
    yield _small_files(vmm, guest, scp, count, 1 if plan.quick else 2)


def _rates(
    contenders: Contenders, amount: float, before: Callable[[], None] = lambda: None
) -> dict[str, Callable[[], float]]:
    def rate(copy: Callable[[], None]) -> float:
        before()
        begun = time.monotonic()
        copy()
        return amount / (time.monotonic() - begun)

    return {name: partial(rate, copy) for name, copy in contenders.items()}


def _cat(guest: CommandGuest, port: int, source: Path | None, target: Path | None) -> None:
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


def _peak(guest: CommandGuest, *words: str) -> float:
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


def _small_files(vmm: str, guest: CommandGuest, scp: list[str], count: int, rounds: int) -> Row:
    tree = guest.scratch / "tree"
    tree.mkdir()
    for number in range(count):
        (tree / f"file {number}").write_bytes(os.urandom(1024))

    tree_in_guest = "/tmp/tree"
    contenders: Contenders = {
        "ours": partial(guest.vsock, "cp", str(tree), f"{guest.name}:{tree_in_guest}"),
        "scp -r": partial(
            guest.command, *scp, "-r", str(tree), f"{guest.name}.vsock:{tree_in_guest}"
        ),
    }
    free = partial(guest.run, f"rm -rf {tree_in_guest}")
    rates, failures = alternate(_rates(contenders, count, free), rounds)
    free()
    what = f"{count} files of 1 KiB, guest under {vmm}"
    return Row(f"copy {vmm} small files", "files/s", rates, what, failures)

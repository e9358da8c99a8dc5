"""The `vsock` command for tests with the Debian guest, which must succeed."""

import subprocess
import sys

from vsock.testing.plugin import DEBIAN

SECONDS = 120


def run(*words: str, given: bytes = b"") -> bytes:
    """The output of a command of `vsock`, which has nothing to complain about."""
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", *words],
        input=given,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def in_guest(line: str) -> str:
    """The output of a line for the guest's shell."""
    return run("exec", DEBIAN, "--", "sh", "-c", line).decode().strip()

"""The examples for real Linux guests: one boots a guest, the other runs in it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.examples.conftest import EXAMPLES, Example

import vsock
from vsock.testing import GuestUnavailable, find_image
from vsock.testing.plugin import REQUIRED_VARIABLE

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]


@pytest.fixture
def prompt(switch: vsock.Switch, start: Example) -> Callable[[str], str]:
    """Boots `alpha` with the example, and returns a function that runs a command there."""
    try:
        find_image("uml")
    except GuestUnavailable as missing:
        if os.environ.get(REQUIRED_VARIABLE):
            raise
        pytest.skip(str(missing))
    shell = start("boot_guest.py", "alpha", "--vmm", "uml", "--copy", EXAMPLES / "in_guest.py")
    assert shell.stdin
    assert shell.stdout
    stdin, stdout = shell.stdin, shell.stdout
    assert re.match(r"alpha runs Linux \d", stdout.readline())

    def ask(command: str) -> str:
        stdin.write(f"{command}{'' if command.endswith('&') else ';'} echo --\n")
        stdin.flush()
        answer = ""
        while not answer.endswith("--\n"):
            piece = stdout.readline()
            answer += piece
            assert piece, f"the guest has ended, it said {answer!r}"
            assert "syntax error" not in piece
        return answer.removesuffix("--\n").removeprefix("alpha# ")

    return ask


def test_guest_serves_and_asks_with_plain_python(
    prompt: Callable[[str], str], run: Callable[..., str], serve: Example
) -> None:
    """The host's examples are the other end; the guest has only its agent."""
    assert prompt("uname -s") == "Linux\n"
    prompt("python3 /tmp/in_guest.py serve 5000 >/tmp/log 2>&1 &")
    prompt("until grep -q listening /tmp/log; do usleep 50000; done")
    assert run("echo_client.py", "alpha:5000", "to the guest") == "to the guest\n"
    serve("echo_server.py", 7000)
    assert prompt("python3 /tmp/in_guest.py ask 7000 'to the host'") == "to the host\n"


def test_the_guests_example_refuses_a_machine_that_is_none() -> None:
    """It ends before it creates a socket, which would be of the kernel's own AF_VSOCK."""
    command = [sys.executable, str(EXAMPLES / "in_guest.py"), "serve", "5000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "no guest" in ended.stderr


def test_the_guest_needs_nothing_of_ours() -> None:
    """The program that runs in the guest imports only the standard library."""
    source = (EXAMPLES / "in_guest.py").read_text()
    modules = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert modules <= sys.stdlib_module_names
    assert Path(EXAMPLES / "boot_guest.py").exists()

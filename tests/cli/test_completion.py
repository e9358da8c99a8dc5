"""N17: completions, requested as bash requests them."""

import os
import subprocess
import sys

import pytest

from vsock.switch import Switch


def offered(*words: str) -> list[str]:
    """The completions of the last of `words`."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from vsock.cli.entry import main; sys.exit(main())"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ
        | {
            "_VSOCK_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("vsock", *words)),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert done.stderr == ""
    return [line.removeprefix("plain,") for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("gu",), ["guest"]),
        (("guest", "remove", "a"), ["alpha"]),
        (("guest", "set", "g"), ["gamma"]),
        (("guest", "run", "b"), ["beta"]),
        (("qemu-args", "b"), ["beta"]),
        (("uml-args", "b"), ["beta"]),
        (("ssh-proxy", "g"), ["gamma"]),
        (("proxy", "--guest", "b"), ["beta"]),
        (("ping", "al"), ["alpha"]),
        (("perf", "al"), ["alpha"]),
        (("explain", "ho"), ["host"]),
        (("explain", "host", "be"), ["beta"]),
        (("cat", "al"), ["alpha:"]),
        (("cat", "-l", "lo"), ["local:"]),
        (("guest", "add", "a"), []),
    ],
)
def test_guests_of_the_switch_are_offered(
    switch: Switch, words: tuple[str, ...], expected: list[str]
) -> None:
    """For arguments that are a guest, a party or an address."""
    assert offered(*words) == expected


def test_without_a_switch_nothing_is_offered(runtime_dir: object) -> None:
    """No error is printed either: it would appear in the middle of the user's line."""
    assert offered("guest", "remove", "a") == []

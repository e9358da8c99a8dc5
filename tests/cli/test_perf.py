"""`vsock perf` between the host and a userspace guest."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vsock.perf import ends
from vsock.switch import Switch

if TYPE_CHECKING:
    from vsock.guest import Guest


def perf(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs `vsock perf` to its end."""
    command = [sys.executable, "-m", "vsock.cli", "perf", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture(params=["stream", "seqpacket"])
def flags(request: pytest.FixtureRequest, guest: "Guest") -> Iterator[list[str]]:
    """Options for a client of the guest `alpha`, in which a server runs."""
    flags = ["--seqpacket"] if request.param == "seqpacket" else []
    command = [sys.executable, "-m", "vsock.cli", "perf", "--server", *flags]
    command += ["--runtime-dir", guest.transport.directory]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            assert "listening" in server.stderr.readline()
            yield flags
        finally:
            server.kill()


@pytest.mark.parametrize("direction", [[], ["--reverse"]])
def test_json_has_every_figure(flags: list[str], direction: list[str]) -> None:
    """Throughput of all flows, processor time of all three, round trips, connections."""
    done = perf("alpha", "--json", "-t", "0.3", "-P", "2", "-l", "8192", *flags, *direction)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["bytes"] == sum(result["flow_bytes"]) > 0
    assert len(result["flow_bytes"]) == 2
    assert result["cpu_seconds_per_gib"]["switch"] > 0
    assert result["round_trip_us"]["p50"] > 0
    assert result["connections_per_second"] > 0


def test_text_names_every_figure(flags: list[str]) -> None:
    """The output without --json."""
    done = perf("alpha", "-t", "0.2", *flags)
    assert done.returncode == 0, done.stderr
    for word in ("throughput", "CPU per GiB", "round trip", "connections"):
        assert word in done.stdout


def test_no_server_is_said_in_one_line(guest: "Guest") -> None:
    """The reason, not a traceback."""
    done = perf("alpha", "-t", "0.1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ("perf", "--server"),
        ("cat", "-v", "-l", "-k", "5000", "--exec", "cat"),
        ("cat", "-v", "-l", "5000"),
    ],
)
def test_server_whose_switch_ends_says_so(runtime_dir: Path, command: tuple[str, ...]) -> None:
    """N5: every command that listens prints a line and exits with 1."""
    with Switch({"alpha": 3}, runtime_dir=runtime_dir):
        server = subprocess.Popen(
            [sys.executable, "-m", "vsock", *command],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert server.stderr
        assert "listening" in server.stderr.readline()
    _, errors = server.communicate(timeout=30)
    assert (server.returncode, errors) == (1, "vsock: accept: the switch went away\n")


def test_plot_that_cannot_be_drawn_is_told_before_the_measurement(tmp_path: Path) -> None:
    """N22: this error comes before the error that no server answers."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')")
    done = subprocess.run(
        [sys.executable, "-m", "vsock", "perf", "alpha", "--plot", "x.png"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (
        1,
        "vsock: --plot needs matplotlib: `pip install matplotlib`\n",
    )


@pytest.mark.parametrize("arguments", [[], ["alpha", "--server"]])
def test_neither_or_both_roles_is_a_usage_error(arguments: list[str]) -> None:
    """Exit code 2, as for every command."""
    assert perf(*arguments).returncode == 2


def test_program_for_a_guest_is_the_file_itself() -> None:
    """It can be piped into a file and run there."""
    assert perf("--program").stdout == Path(ends.__file__).read_text()

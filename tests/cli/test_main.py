"""The command as a whole: it imports little, and reports errors in one line with the right exit code."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.commands import commands

from vsock.cli.main import main

HEAVY = {"asyncio", "fastapi", "http.client", "pydantic", "rich", "ssl", "uvicorn"}
"""Modules that only the command that needs them may import."""


def modules_after(code: str) -> set[str]:
    """The modules that a new interpreter has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return set(done.stderr.split())


def test_help_names_every_command_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Listing the commands imports no more than Click."""
    loaded = modules_after("from vsock.cli.main import main\nmain(['--help'])")
    assert not HEAVY & loaded
    assert not [name for name in loaded if name.startswith("vsock.switch")]
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for (name,) in (words for words in commands() if len(words) == 1):
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("command", sorted(" ".join(words) for words in commands()))
def test_every_command_has_help_and_imports_no_daemon(command: str) -> None:
    """A command that sends requests to the switch does not import the switch."""
    arguments = [*command.split(), "--help"]
    loaded = modules_after(f"from vsock.cli.main import main\nassert main({arguments}) == 0")
    assert not {"asyncio", "fastapi", "pydantic", "rich", "uvicorn"} & loaded


def test_looking_for_a_kept_session_imports_neither_sockets_nor_asyncio() -> None:
    """`vsock exec` in a session that is open already costs little more than the start of Python."""
    loaded = modules_after("""
from vsock.cli import exec, in_session
from vsock.cli.orders import Place
place = Place("root", 22, 1.0, False, None, None)
assert in_session.attempt(None, place, "alpha", None) is None
""")
    assert not {"asyncio", "asyncssh", "vsock.transports", "tempfile"} & loaded


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"],
        ["ls", "--json"],
        ["guest", "ls"],
        ["guest", "add", "alpha", "3"],
        ["guest", "set", "alpha", "--cid", "4"],
        ["guest", "remove", "alpha"],
        ["guest", "run", "alpha", "true"],
        ["qemu-args", "alpha"],
        ["uml-args", "alpha"],
        ["cat", "3:80"],
        ["cat", "alpha:80"],
        ["cat", "-l", "80"],
        ["perf", "3"],
        ["ping", "3"],
        ["proxy", "--allow", "a.test"],
        ["explain", "host", "alpha"],
    ],
)
def test_without_a_switch_every_command_says_so_in_one_line(
    arguments: list[str], runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, no standard output, and the line says what to do.

    N16: exit code 2 for commands whose 1 is an answer.
    """
    assert main(arguments) == (2 if arguments[0] in ("explain", "ping") else 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(
        f"vsock: no switch answers in {runtime_dir}: start one with `vsock switch`, or say where "
        "it is with VSOCK_RUNTIME_DIR or --runtime-dir"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nonsense"], "no command 'nonsense'"),
        (["guest", "add", "alpha"], "CID"),
        (["guest", "add", "alpha", "2"], "2 is no guest's CID: 3 to 4294967294"),
        (["guest", "add", "alpha", "three"], "'three' is no CID: a decimal number"),
        (["guest", "set", "alpha", "--cid", "9" * 5000], "is no CID"),
        (["guest", "add", "host", "3"], "'host' is CID 2"),
        (["switch", "--guest", "alpha"], "is not NAME=CID"),
        (["switch", "--guest", "alpha=x"], "is not NAME=CID"),
        (["switch", "--guest", "alpha=1"], "1 is no guest's CID"),
        (["switch", "--guest", "a=3", "--guest", "b=3"], "CID 3 belongs to guest a"),
        (["ping", "3", "--echo"], "--echo needs NAME:PORT"),
        (["ping", "3", "--count", "0"], "range"),
        (["cat", "-k", "3:80"], "-k is for -l with --exec"),
        (["cat", "3:80", "--exec", " "], "--exec needs a command"),
        (
            ["cat", "3:80", "--runtime-dir", "/x", "--transport", "kernel"],
            "without --transport kernel",
        ),
        (["qemu-args", "alpha", "--memory", "1"], "range"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], reason: str, runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Click's usage error with the reason, and the command does nothing."""
    assert main(arguments) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("address", ["3", "3:x", "a b:3", "tcp://a:1", "3:4294967296"])
def test_bad_address_is_one_line(
    address: str, runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the address parser's reason; the exit code is 2, for wrong usage."""
    assert main(["cat", address]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vsock: ")
    assert captured.err.count("\n") == 1
    assert address in captured.err


def test_missing_config_file_is_named(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the system's reason and the path."""
    assert main(["switch", "--config", str(runtime_dir / "none.toml")]) == 1
    assert capsys.readouterr().err == f"vsock: {runtime_dir}/none.toml: No such file or directory\n"


def test_reader_of_our_output_that_leaves_is_no_traceback(runtime_dir: Path) -> None:
    """`vsock ... | head` ends quietly."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 1
    assert errors == b""


def test_faults_of_a_file_each_have_our_name(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """N19: so that every line in a log has its program."""
    file = runtime_dir / "wrong.toml"
    file.write_text("[[guest]]\nname = 'host'\ncid = 0\n")
    assert main(["switch", "--config", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"vsock: {file}:") for line in lines)


@pytest.mark.parametrize("words", [["-V"], ["--version"]])
def test_version_has_two_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """N18."""
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("vsock ")


def test_help_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    """N18: for `vsock`, for a command and for a group's command; that of `vsock` names the guide."""
    for words, option in (
        (["help"], ["--help"]),
        (["help", "ls"], ["ls", "--help"]),
        (["help", "guest", "add"], ["guest", "add", "--help"]),
    ):
        assert main(words) == main(option) == 0
        shown = capsys.readouterr().out
        half = len(shown) // 2
        assert shown[:half] == shown[half:]
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Usage: vsock ")
    assert "docs/guide" in shown


def test_package_is_the_command() -> None:
    """N18: `python -m vsock` and `python -m vsock.cli`."""
    for module in ("vsock", "vsock.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("vsock ")


def test_command_starts_light() -> None:
    """`vsock --version` imports no socket module."""
    loaded = modules_after(
        "from vsock.cli.entry import main\nimport sys\nsys.argv[1:] = ['-V']\nmain()"
    )
    assert not {"vsock.sockets", "vsock.transports"} & loaded


def test_full_disk_is_one_line(switch: object) -> None:
    """Also if the output is so short that it is written only at exit."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m vsock ls > /dev/full"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "vsock: No space left on device\n")

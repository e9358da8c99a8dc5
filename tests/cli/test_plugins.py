"""Commands of other distributions: found when they are used, without an effect on the own commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKS = """
import click
from vsock.cli.options import json_option

@click.command()
@click.argument("whom")
@json_option
def hello(whom, as_json):
    "Greet WHOM."
    click.echo(f"hello {whom}")
    return 3

WORDS = 5
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages: `greetings` 1.2, with commands of all kinds."""
    (tmp_path / "greetings.py").write_text(WORKS)
    (tmp_path / "broken.py").write_text("import no_such_package\nno = 1\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit('not\\nhere')\n")
    add(tmp_path, "greetings", hello="greetings:hello", broken="broken:no", leaving="leaving:no")
    add(
        tmp_path,
        "others",
        missing="greetings:missing",
        number="greetings:WORDS",
        ls="greetings:hello",
    )
    return tmp_path


def add(site: Path, name: str, **commands: str) -> None:
    """Install a distribution's metadata."""
    folder = site / f"{name}-1.2.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{command} = {value}" for command, value in commands.items()]
    (folder / "entry_points.txt").write_text("\n".join(["[vsock.commands]", *lines, ""]))


def call(site: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output and error of a `vsock` that finds `site`."""
    done = subprocess.run(
        [sys.executable, "-m", "vsock", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=os.environ | {"PYTHONPATH": str(site)} | environment,
    )
    return done.returncode, done.stdout, done.stderr


def test_command_of_another_distribution_is_as_one_of_ours(site: Path) -> None:
    """Arguments, exit code, help, and faults in one line."""
    assert call(site, "hello", "Ada") == (3, "hello Ada\n", "")
    assert "Greet WHOM." in call(site, "hello", "--help")[1]
    assert call(site, "help", "hello")[1] == call(site, "hello", "--help")[1]
    code, _, said = call(site, "hello")
    assert (code, said) == (2, "vsock: Missing argument 'WHOM'; see `vsock hello --help`\n")
    assert "did you mean hello" in call(site, "helo")[2]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("broken", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("leaving", "SystemExit: not here"),
        ("missing", "AttributeError: module 'greetings' has no attribute 'missing'"),
        ("number", "greetings:WORDS is no click command"),
    ],
)
def test_command_that_cannot_be_loaded_is_one_line(site: Path, command: str, reason: str) -> None:
    """For every use of it; without a traceback of another module."""
    for words in ((command,), (command, "--help"), (command, "-x", "y")):
        code, shown, said = call(site, *words)
        assert (code, shown, said.count("\n")) == (1, "", 1)
        assert said.startswith(f"vsock: command {command!r} of ")
        assert said.endswith(f" 1.2 cannot be loaded: {reason}\n")


def test_help_lists_them_without_loading_any(site: Path) -> None:
    """With their distribution; a command with the name of an own one is not used, and the help has a warning."""
    code, shown, said = call(site, "--help")
    assert code == 0
    _, _, others = shown.partition("Commands of other distributions:")
    assert "hello    From greetings 1.2." in others
    assert "broken   From greetings 1.2." in others
    assert "missing  From others 1.2." in others
    assert said == "vsock: command 'ls' of others 1.2 is not used: `vsock ls` is our own\n"
    assert "hello" not in call(site, "ls", "--help")[1]


def test_shell_is_offered_them_in_spite_of_broken_ones(site: Path) -> None:
    """Completion imports every command."""
    asked = {"_VSOCK_COMPLETE": "bash_complete", "COMP_WORDS": "vsock ", "COMP_CWORD": "1"}
    _, shown, said = call(site, **asked)
    assert {"plain,hello", "plain,broken", "plain,ls"} <= {*shown.split()}
    assert said == ""


def test_our_own_commands_do_not_look_for_others(site: Path) -> None:
    """The search would take a third of their start-up time."""
    code = (
        "import sys\nfrom vsock.cli.main import main\nmain(['ls', '--help'])\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert "importlib.metadata" not in done.stdout.split()

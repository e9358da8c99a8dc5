"""Debian packages on a machine that is busy or stale: `tools/debian-packages` with another apt-get (N9)."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "debian-packages"

Run = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tool with an apt-get that does as the script says; its calls are in `calls`."""
    programs = {
        "dpkg-query": "exit 1",
        "id": "echo 0",
        "apt-get": f'echo "$@" >>{tmp_path}/calls; eval "$APT"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def run(apt: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(TOOL), "one", "two"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "APT": apt},
            cwd=tmp_path,
        )

    return run


def calls(folder: Path) -> list[str]:
    """The commands of apt-get without options, and whether it was told to wait."""
    lines = (folder / "calls").read_text().splitlines()
    assert all(line.startswith("-q -o DPkg::Lock::Timeout=600 ") for line in lines[:1])
    return [" ".join(w for w in line.split()[3:] if not w.startswith("-")) for line in lines]


def test_known_packages_are_installed_at_once(run: Run, tmp_path: Path) -> None:
    """apt-get waits for the lock of another apt-get."""
    process = run("exit 0")
    assert process.communicate(timeout=30)[0] == "installing Debian packages: one two\n"
    assert process.returncode == 0
    assert calls(tmp_path) == ["install one two"]


def test_stale_lists_are_updated_and_installing_is_tried_again(run: Run, tmp_path: Path) -> None:
    """Also if some lists could not be fetched."""
    process = run('case "$*" in *update*) touch new; exit 100 ;; *) [ -e new ] ;; esac')
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert calls(tmp_path) == ["install one two", "update", "install one two"]


def test_lock_of_the_lists_is_waited_for(run: Run, tmp_path: Path) -> None:
    """apt-get itself does not wait for it."""
    process = run(
        'case "$*" in *update*) [ -e tried ] || { touch tried; '
        'echo "E: Could not get lock /x/lists/lock. It is held by process 7 (apt-get)"; exit 100; } ;;'
        " *) [ -e tried ] ;; esac"
    )
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert calls(tmp_path) == ["install one two", "update", "update", "install one two"]


def test_last_words_are_shown(run: Run) -> None:
    """With the missing packages, and a status for make."""
    process = run('echo "E: no space left"; exit 100')
    output, _ = process.communicate(timeout=30)
    assert output.splitlines()[-2:] == [
        "E: no space left",
        "missing: one two; apt-get could not install them (its last lines are above)",
    ]
    assert process.returncode == 1


def test_long_wait_shows_what_apt_says(run: Run, tmp_path: Path) -> None:
    """N15: the user sees what apt-get waits for."""
    os.mkfifo(tmp_path / "fifo")
    process = run('echo "Waiting for cache lock: held by process 7 (apt-get)"; read -r _ <fifo')
    assert process.stdout
    assert process.stdout.readline() == "installing Debian packages: one two\n"
    assert process.stdout.readline() == "  Waiting for cache lock: held by process 7 (apt-get)\n"
    with (tmp_path / "fifo").open("w") as fifo:
        fifo.write("free\n")
    process.communicate(timeout=30)
    assert process.returncode == 0

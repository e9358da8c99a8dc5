"""The units in the package: systemd accepts them, and they start the `vsock` command (N7)."""

import configparser
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

UNITS = Path(str(files("vsock") / "systemd"))


def unit(kind: str) -> configparser.ConfigParser:
    """One unit as sections and keys."""
    parser = configparser.ConfigParser(interpolation=None, delimiters="=")
    parser.optionxform = str  # type: ignore[method-assign,assignment] # keys as they are written
    parser.read(UNITS / kind / "vsock.service")
    return parser


@pytest.mark.programs("systemd-analyze")
@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_has_nothing_to_say_against_it(tmp_path: Path, kind: str) -> None:
    """With the path of the command replaced; systemd 252, of Debian 12, does not know `notify-reload`."""
    command = unit(kind)["Service"]["ExecStart"].split()[0]
    text = (UNITS / kind / "vsock.service").read_text()
    copy = tmp_path / "vsock.service"
    copy.write_text(text.replace(command, str(Path(sys.executable).parent / "vsock")))
    done = subprocess.run(
        ["systemd-analyze", f"--{kind}", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    about_it = [line for line in done.stderr.splitlines() if "vsock" in line]
    assert (done.returncode, about_it) == (0, [])


@pytest.mark.parametrize("kind", ["system", "user"])
def test_unit_is_whole(kind: str) -> None:
    """It has readiness, reload, a private directory, and starts at boot and after a crash."""
    service, install = unit(kind)["Service"], unit(kind)["Install"]
    assert service["Type"] == "notify"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryMode"]) == ("vsock", "0700")
    assert service["Restart"] == "on-failure"
    assert install["WantedBy"]
    assert ("User" in service) == (kind == "system")


@pytest.mark.parametrize("kind", ["system", "user"])
def test_command_of_the_unit_starts_a_switch(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the arguments of the unit, it fails only because their config file does not exist."""
    _, *arguments = shlex.split(unit(kind)["Service"]["ExecStart"])
    values = {"/etc/vsock.toml": "missing.toml", "%E/vsock.toml": "missing.toml"}
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", *(values.get(word, word) for word in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert "missing.toml" in done.stderr
    assert "Usage" not in done.stderr

"""Build backend of the package (PEP 517): builds the preload library and vsock-sshd, then calls maturin.

maturin builds one Rust library, the native module. The preload library is a second one, and vsock-sshd a
program; they are built first and put into the package's folder, from where maturin takes them along (`include` in
pyproject.toml). An editable installation has no vsock-sshd until `make sshd` makes it, which takes a minute.

Wheels are built by maturin's command rather than by its own hook, which tags them for this machine
only: the command asks the native module which C library it needs, and says so in the tag.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import maturin
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# maturin warns if the backend is not its own; this backend calls it.
os.environ["MATURIN_NO_MISSING_BUILD_BACKEND_WARNING"] = "1"

_PROGRAM = Path(__file__).parents[1] / "src" / "vsock" / "_lib" / "vsock-sshd"


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel with both libraries and the program, stripped and without paths of this machine.

    Without the program if that cannot be built, as everything else works without it: it is static, and needs a newer Rust.
    """
    environment = os.environ | {"RUSTFLAGS": _flags_without_paths()}
    _build("build-preload", environment)
    try:
        _build("build-sshd", environment)
    except subprocess.CalledProcessError:
        _PROGRAM.unlink(missing_ok=True)  # of an earlier version
        print(
            f"warning: the wheel is without {_PROGRAM.name}, as cargo says above", file=sys.stderr
        )
    with tempfile.TemporaryDirectory() as out:
        command = ["maturin", "build", "--release", "--strip", "--interpreter", sys.executable]
        subprocess.run([*command, "--out", out], check=True, env=environment)
        (wheel,) = Path(out).glob("*.whl")
        shutil.copy(wheel, wheel_directory)
    return wheel.name


def build_editable(*arguments: Any, **options: Any) -> str:
    """Build both libraries in place, and an editable wheel."""
    _build("build-preload")
    return maturin.build_editable(*arguments, **options)


def _build(name: str, environment: dict[str, str] | None = None) -> None:
    # Run by its interpreter, because it is not executable in a source distribution.
    script = Path(__file__).parent / name
    subprocess.run(["sh", script], check=True, env=environment)


def _flags_without_paths() -> str:
    """Compiler flags that keep this machine's paths of dependencies out of the libraries."""
    home = os.environ.get("CARGO_HOME") or Path("~/.cargo").expanduser()
    remap = f"--remap-path-prefix={Path(home) / 'registry' / 'src'}=registry"
    return f"{os.environ.get('RUSTFLAGS', '')} {remap}".strip()

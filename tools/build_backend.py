"""Build backend of the package (PEP 517): builds the preload library, then lets maturin go on.

maturin builds one Rust library, the native module. The preload library is a second one; it is built
first and put into the package's folder, from where maturin takes it along (`include` in
pyproject.toml).
"""

import subprocess
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


def build_wheel(*arguments: Any, **options: Any) -> str:
    """Build the wheel, with both libraries."""
    _build_preload()
    return maturin.build_wheel(*arguments, **options)


def build_editable(*arguments: Any, **options: Any) -> str:
    """Build both libraries in place, and a wheel that points here."""
    _build_preload()
    return maturin.build_editable(*arguments, **options)


def _build_preload() -> None:
    subprocess.run([Path(__file__).parent / "build-preload"], check=True)

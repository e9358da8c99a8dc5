"""The public surface is written by hand; these tests keep it true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vsock

HEAVY = {"asyncio", "ssl", "pydantic", "fastapi", "click", "rich", "dataclasses", "vsock._native"}
"""What `import vsock` must not cost."""


def test_all_is_sorted_and_without_doubles():
    """__all__ reads as a list: constants, classes, functions, each in order."""

    def rank(name):
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert vsock.__all__ == sorted(set(vsock.__all__), key=rank)


def test_all_is_what_the_module_imports_by_name():
    """Every imported name is public, and nothing else is."""
    tree = ast.parse(Path(vsock.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vsock")
        for alias in node.names
    }
    assert imported == set(vsock.__all__)


@pytest.mark.parametrize("name", vsock.__all__)
def test_public_name_is_there(name):
    """Each name can be had, also those imported late."""
    assert getattr(vsock, name) is not None
    assert name in dir(vsock)


def test_unknown_name_raises_attribute_error():
    """The late import does not hide mistakes."""
    with pytest.raises(AttributeError, match="sokcet"):
        _ = vsock.sokcet


@pytest.mark.parametrize("name", [name for name in vsock.__all__ if callable(getattr(vsock, name))])
def test_public_callable_has_a_docstring(name):
    """What is public is explained."""
    assert (getattr(vsock, name).__doc__ or "").strip()


def test_import_is_light():
    """Importing the package does not load what only some of its users need."""
    program = "import sys, vsock; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "vsock.sockets" in loaded
    assert HEAVY & set(loaded) == set()

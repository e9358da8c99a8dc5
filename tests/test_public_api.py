"""The list of public names is written by hand; these tests check it."""

import ast
import inspect
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vsock

HEAVY = {"asyncio", "ssl", "pydantic", "fastapi", "click", "rich", "dataclasses", "vsock._native"}
"""Modules that `import vsock` must not load."""

ROOTS = {
    *("VsockError", "UsageError", "AddressError", "CopyError", "SessionError", "TransportError"),
}
"""Errors without an errno, or with any."""


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
    """Each name is available, also those that are imported later."""
    assert getattr(vsock, name) is not None
    assert name in dir(vsock)


def test_unknown_name_raises_attribute_error():
    """The lazy import does not hide wrong names."""
    with pytest.raises(AttributeError, match="sokcet"):
        _ = vsock.sokcet


@pytest.mark.parametrize("name", [name for name in vsock.__all__ if callable(getattr(vsock, name))])
def test_public_callable_has_a_docstring(name):
    """Every public name has a docstring."""
    assert (getattr(vsock, name).__doc__ or "").strip()


def public_functions():
    """Each public function, and each public method of a public class, with its docstrings."""
    for name in vsock.__all__:
        found = getattr(vsock, name)
        if inspect.isclass(found):
            for method, function in inspect.getmembers(found, inspect.isfunction):
                is_ours = function.__module__.startswith("vsock")
                if is_ours and (method == "__init__" or not method.startswith("_")):
                    yield f"{name}.{method}", function, f"{found.__doc__} {function.__doc__}"
        elif inspect.isfunction(found):
            yield name, found, found.__doc__


@pytest.mark.parametrize(
    ("function", "text"),
    [pytest.param(function, text, id=name) for name, function, text in public_functions()],
)
def test_public_function_explains_its_arguments(function, text):
    """Each argument by its name, except those that are passed on and those of `socket.socket`."""
    same_in_python = function.__name__ != "__init__" and hasattr(socket.socket, function.__name__)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        is_said = re.search(rf"\b{parameter.name}\b", text)
        assert is_said or same_in_python or "; see `vsock." in text, parameter.name


@pytest.mark.parametrize(
    "name", [name for name in vsock.__all__ if name in vars(vsock.errors) and name not in ROOTS]
)
def test_error_says_its_errno(name):
    """The errno that AF_VSOCK gives."""
    assert re.search(r"\bE[A-Z]{3,}\b", getattr(vsock, name).__doc__)


def modules_after(program):
    """The modules that a new interpreter has imported after `program`."""
    program = f"{program}; import sys; print(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize("name", ["Guest", "Switch", "socket"])
def test_help_of_a_class_says_how_to_make_one(name):
    """Not "Initialize self", the docstring of `object` (N27)."""
    assert getattr(vsock, name).__init__.__doc__ not in (None, object.__init__.__doc__)


def test_import_is_light():
    """Importing the package does not load modules that only some users need (N13)."""
    before = modules_after("pass")
    assert modules_after("import vsock") - before == {"vsock"}
    assert HEAVY & modules_after("import vsock; vsock.create_connection") == set()


def test_modules_are_there_without_being_imported_by_name():
    """`import vsock` is enough to name an error or the verbs by their module."""
    assert "vsock.errors" in modules_after("import vsock; vsock.errors.NoSwitch, vsock.sockets")

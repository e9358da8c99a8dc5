"""The arrows of ARCHITECTURE.md: a module imports only from layers below its own.

Reads the imports of every module, also those inside functions and for types only.
"""

import ast
from pathlib import Path

import pytest

import vsock

SOURCE = Path(vsock.__file__).parent

LAYERS = [
    {"address", "errors", "runtime", "vmm"},
    {"_native"},
    {"_endpoint"},
    {"transports"},
    {"_socket_class"},
    {"sockets"},
    {"aio"},
    {"guest"},
    {"switch"},
    {"testing"},
    {"demo"},
    {"cli"},
]
"""From the bottom up; within the lowest one a module may import its neighbours."""

RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

PURE = {"address", "errors", "runtime", "vmm", "switch.config", "switch.model", "switch.policy"}
"""Modules that do no I/O of their own: files of config, sockets and processes come from others."""

IO = {"asyncio", "fastapi", "http", "select", "selectors", "socket", "subprocess", "threading"}


def modules() -> list[str]:
    """Every module of the package by its dotted name below `vsock`."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found.append(name.removesuffix(".__init__"))
    return [name for name in found if name != "__init__"]


def imports(module: str) -> set[str]:
    """The dotted names that a module imports, those of this package without `vsock.`."""
    path = SOURCE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "vsock":
                names |= {f"vsock.{alias.name}" for alias in node.names}
            else:
                names.add(str(node.module))
    return names


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_from_below(module: str) -> None:
    """A new module needs a place in `LAYERS`; an arrow upwards needs another design."""
    layer = module.partition(".")[0]
    assert layer in RANKS, f"{layer} has no layer yet: give it one in this file"
    for name in imports(module):
        if not name.startswith("vsock"):
            continue
        below = name.removeprefix("vsock").removeprefix(".").partition(".")[0]
        if below == layer:
            continue
        assert below in RANKS, f"{module} imports {name}: import from the module that has it"
        is_leaf = RANKS[layer] == RANKS[below] == 0
        assert RANKS[below] < RANKS[layer] or is_leaf, f"{module} must not import {name}"


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_module_does_no_io(module: str) -> None:
    """What is pure can be tested with tables, so it stays so."""
    assert not {name.partition(".")[0] for name in imports(module)} & IO

"""A layer imports only from layers below it: the picture in ARCHITECTURE.md, checked.

The map names, for each module or package of `vsock`, what it may import. An import inside a
function or under TYPE_CHECKING counts like any other.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsock

ROOT = Path(vsock.__file__).parent

LEAVES = {"address", "errors", "runtime"}
"""Usable by everything; they import nothing but each other."""

BELOW_SOCKETS = LEAVES | {"_system", "_client", "_socket", "transports"}
BELOW_SWITCH = BELOW_SOCKETS | {"sockets", "aio", "guest", "_native"}
BELOW_TOOLS = BELOW_SWITCH | {
    *("adapters", "control", "forwarding", "proxy", "ssh", "switch", "vmm", "preload"),
}

ALLOWED: dict[str, set[str]] = {
    # leaves
    "errors": set(),
    "address": {"errors"},
    "runtime": set(),
    "vmm": LEAVES,
    "preload": LEAVES,
    # sockets, from the system's up to the public API
    "_system": {"errors"},
    "_client": LEAVES | {"_system"},
    "_socket": LEAVES | {"_system", "_client"},
    "transports": LEAVES | {"_system", "_client", "_socket"},
    "sockets": BELOW_SOCKETS,
    "aio": BELOW_SOCKETS | {"sockets"},
    "guest": BELOW_SOCKETS | {"sockets", "aio", "_native"},
    # the public names: everything that is public, and nothing that is not
    "": {"address", "errors", "sockets", "aio", "guest", "ssh", "switch", "transports"},
    # control plane: what both ends share, and the switch
    "control": LEAVES,
    "switch": BELOW_SWITCH | {"control"},
    # what programs do with it
    "forwarding": BELOW_SOCKETS | {"sockets", "aio"},
    "proxy": BELOW_SOCKETS | {"control", "forwarding"},
    "ssh": BELOW_SOCKETS | {"aio", "control"},
    # libraries of others, over it
    "adapters": BELOW_SOCKETS | {"sockets", "aio", "forwarding", "ssh"},
    # tools
    "cli": BELOW_TOOLS | {"demo", "perf"},
    "demo": BELOW_TOOLS | {"testing"},
    "perf": {"errors", "runtime"},
    "__main__": {"cli"},
    # supported test helpers: may import anything
    "testing": BELOW_TOOLS,
}
"""Allowed imports; ``""`` is the package itself. Modules of a package may import each other."""


FROM_ELSEWHERE = {
    # each module of its own library
    "adapters": {
        "aiohttp",
        "anyio",
        "asyncssh",
        "fsspec",
        "httpcore",
        "sshfs",
        "httpx",
        "requests",
        "urllib3",
    },
    "cli": {"click", "rich"},  # vsock[cli]
    "demo": {"rich"},  # vsock[cli]
    "proxy": {"h11"},  # vsock[proxy]
    "ssh": {"asyncssh"},  # vsock[ssh]
    "switch": {"fastapi", "pydantic", "pydantic_core", "starlette", "uvicorn"},  # vsock[switch]
    "perf": {"matplotlib"},  # vsock[plot]
    "testing": {"pytest"},
    "_system": {"eventlet", "gevent"},  # if the program has patched its sockets with one of them
}
"""The imports of other distributions that are allowed, and where."""


def module_files() -> Iterator[tuple[str, Path]]:
    """The files of the package: (name of the module or package right below vsock, path)."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ("" if parts == ("__init__",) else parts[0]), path


FILES = list(module_files())


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """The modules that the file imports, with line numbers and full names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            yield node.lineno, name


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """The modules and packages directly below vsock that the file imports, with line numbers."""
    for line, name in imported_names(path):
        package, _, rest = name.partition(".")
        if package == "vsock":
            yield line, rest.partition(".")[0]


def is_part(name: str) -> bool:
    """Tell whether `name` is a module or package of vsock, and not one of its public names."""
    return name == "_native" or (ROOT / name).is_dir() or (ROOT / f"{name}.py").exists()


@pytest.mark.parametrize(
    ("part", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES]
)
def test_module_imports_only_from_below(part, path):
    """No arrow points up or sideways."""
    assert part in ALLOWED, f"{part} has no place in the layers yet: give it one in ALLOWED"
    for line, target in imported_parts(path):
        # `import vsock` and `from vsock import socket` go by the public names.
        seen = target if target and is_part(target) else ""
        if seen == part or (seen == "" and part in {"cli", "demo", "testing"}):
            continue
        assert seen in ALLOWED[part], f"{path}:{line}: {part or 'vsock'} must not import {seen}"


def test_map_has_no_cycle():
    """The allowed arrows themselves point down only."""
    done = {"_native"}
    left = {part: set(below) - {"_native"} for part, below in ALLOWED.items()}
    while left:
        ready = {part for part, below in left.items() if below <= done}
        assert ready, f"these import each other: {sorted(left)}"
        done |= ready
        for part in ready:
            del left[part]


def test_every_name_in_the_map_is_a_module():
    """The map has no names of removed modules."""
    parts = {part for part, _ in FILES}
    assert set(ALLOWED) - parts - {"demo", "testing"} == set()


def test_only_guest_and_switch_touch_the_native_module():
    """Only these two use the native module directly."""
    touching = {
        part for part, path in FILES for _, target in imported_parts(path) if target == "_native"
    }
    assert touching <= {"guest", "switch"}


@pytest.mark.parametrize(
    ("part", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES]
)
def test_library_imports_only_python_itself(part, path):
    """Other parts import what their extra installs (pyproject.toml), or what the program has already imported."""
    for line, name in imported_names(path):
        package = name.partition(".")[0]
        if package not in {"vsock", *sys.stdlib_module_names}:
            assert package in FROM_ELSEWHERE.get(part, ()), f"{path}:{line}: {package}"


@pytest.mark.parametrize(
    "source", ["from vsock.cli.main import main", "import vsock.switch.server"]
)
def test_arrow_that_points_up_is_found(tmp_path, source):
    """The check sees both forms of import, also inside a function."""
    file = tmp_path / "file.py"
    file.write_text(f"def late():\n    {source}\n")
    (found,) = imported_parts(file)
    assert found[1] in {"cli", "switch"}
    assert found[1] not in ALLOWED["sockets"]

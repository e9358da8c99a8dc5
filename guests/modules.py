"""The kernel modules that a guest needs, in the order in which they can be loaded.

Debian's kernel packages contain no list of dependencies (depmod makes it at installation), so the
dependencies are read from the modules: each has a string `depends=a,b` in its section `.modinfo`. A
module without a file must be built into the kernel, otherwise the recipe is wrong.
"""

import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_DEPENDS = re.compile(rb"\0?depends=([^\0]*)\0")


class ModuleMissing(Exception):  # noqa: N818 - says what happened
    """A wanted module is neither a file nor built in."""


def load_order(tree: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every module that `wanted` needs from `tree`, dependencies first."""
    files = {_name(path.name): path for path in tree.rglob("*.ko*")}
    builtin_list = (tree / "modules.builtin").read_text()
    builtin = {_name(line.rpartition("/")[2]) for line in builtin_list.splitlines()}
    done: set[str] = set()

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done or name in builtin:
            return
        done.add(name)
        if name not in files:
            raise ModuleMissing(f"kernel in {tree.name} has no module {name}")
        content = _content(files[name])
        for dependency in _dependencies(content):
            yield from visit(dependency)
        yield name, content

    for name in wanted:
        yield from visit(name)


def _name(file_name: str) -> str:
    return file_name.partition(".ko")[0].replace("-", "_")


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    return lzma.decompress(raw) if path.suffix == ".xz" else raw


def _dependencies(content: bytes) -> list[str]:
    found = _DEPENDS.search(content)
    if found is None:
        return []
    return [_name(name) for name in found.group(1).decode().split(",") if name]

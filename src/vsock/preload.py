"""The preload library: AF_VSOCK through the switch for programs that know nothing of it.

`preload_path` finds it in the installed package, `preload_environment` gives the environment of a
program that is to use it. ``vsock run`` does both, and looks first whether the program can use it
at all. What the library does is said in docs/guide/unmodified-programs.md. This module starts no
programs.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from vsock.errors import UsageError

__all__ = ["preload_environment", "preload_path"]


def preload_path() -> Path:
    """Return where the preload library is: the value for ``LD_PRELOAD``.

    Raises:
        UsageError: this copy of the package was built without it.
    """
    path = Path(__file__).parent / "_lib" / "libvsock_preload.so"
    if not path.exists():
        raise UsageError(f"{path} is missing: build it with `make build`, or install the wheel")
    return path


def preload_environment(
    runtime_dir: Path, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return `environment` (by default our own) with what sends AF_VSOCK to the switch at `runtime_dir`.

    Other libraries in ``LD_PRELOAD`` stay, after ours. The run-time library of gcc's AddressSanitizer, which wants to be the
    first of all, is told by ``ASAN_OPTIONS`` to do without; ours calls nothing that it needs to be first for.
    """
    changed = dict(os.environ if environment is None else environment)
    others = [name for name in changed.get("LD_PRELOAD", "").replace(":", " ").split() if name]
    ours = str(preload_path())
    changed["LD_PRELOAD"] = ":".join([ours, *(name for name in others if name != ours)])
    options = changed.get("ASAN_OPTIONS")
    # What comes later wins there, and that is what the user says.
    changed["ASAN_OPTIONS"] = ":".join(filter(None, ["verify_asan_link_order=0", options]))
    changed["VSOCK_RUNTIME_DIR"] = str(runtime_dir.absolute())
    return changed

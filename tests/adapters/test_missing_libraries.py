"""What a program sees whose library is not installed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vsock

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]
ADAPTERS = Path(vsock.__file__).parent / "adapters"


@pytest.mark.parametrize("library", ["aiohttp", "fsspec", "httpx", "requests", "urllib3"])
def test_error_says_what_to_install(library):
    """In one line, with an extra that there is."""
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"import vsock.errors\n"
        f"try: import vsock.adapters.{library}\n"
        f"except vsock.errors.MissingExtra as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    wanted = f"{library} over vsock needs {library}: pip install 'vsock[{library}]'\n"
    assert (done.stdout, done.stderr) == (wanted, "")
    assert library in EXTRAS


def test_package_imports_no_library():
    """Each module imports its own."""
    program = "import sys, vsock.adapters, vsock.adapters.destination; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert not {"aiohttp", "anyio", "asyncio", "httpx", "urllib3"} & set(done.stdout.split())

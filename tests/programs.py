"""Programs that tests run: `@pytest.mark.programs("socat")` skips a test if socat is not installed.

If VSOCK_REQUIRE_PROGRAMS is set, the test fails instead. `make test` sets it, so that no test is skipped
unnoticed.
"""

import os
import shutil
from collections.abc import Iterable
from typing import Final, NoReturn

import pytest

__all__ = ["REQUIRED_VARIABLE", "find", "need", "not_to_be_had"]

REQUIRED_VARIABLE: Final = "VSOCK_REQUIRE_PROGRAMS"


def find(name: str) -> str | None:
    """Returns the path of a program, also of one that only root has in PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def need(names: Iterable[str]) -> None:
    """Skips or fails the running test unless all these programs are installed."""
    if missing := [name for name in names if not find(name)]:
        not_to_be_had(f"not installed: {', '.join(missing)}")


def not_to_be_had(reason: str) -> NoReturn:
    """Skips the running test, or fails it if VSOCK_REQUIRE_PROGRAMS is set."""
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(f"{reason} ({REQUIRED_VARIABLE} is set)", pytrace=False)
    pytest.skip(reason)

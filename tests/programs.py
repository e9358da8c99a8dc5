"""Programs that tests run. A test says `@pytest.mark.programs("socat")`, and is skipped where that is not installed.

With VSOCK_REQUIRE_PROGRAMS set it fails there instead: `make test` sets it, so that no test vanishes silently.
"""

import os
import shutil
from collections.abc import Iterable
from typing import Final, NoReturn

import pytest

__all__ = ["REQUIRED_VARIABLE", "find", "need", "not_to_be_had"]

REQUIRED_VARIABLE: Final = "VSOCK_REQUIRE_PROGRAMS"


def find(name: str) -> str | None:
    """Where a program is; those for administrators are found too."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def need(names: Iterable[str]) -> None:
    """Return if there are all these programs; else the test is over."""
    if missing := [name for name in names if not find(name)]:
        not_to_be_had(f"not installed: {', '.join(missing)}")


def not_to_be_had(reason: str) -> NoReturn:
    """Skip the test that runs, or fail it where programs must be there."""
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(f"{reason} ({REQUIRED_VARIABLE} is set)", pytrace=False)
    pytest.skip(reason)

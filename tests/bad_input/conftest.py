"""One switch for all of these tests; each must leave it as it was, and working."""

from collections.abc import Iterator

import pytest
from tests.bad_input.lab import Lab


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Lab]:
    """The switch and its guest."""
    with Lab() as lab:
        yield lab


@pytest.fixture(autouse=True)
def lab(running_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The switch, without other programs; after the test it holds what it held before, and serves the next program."""
    lab = running_lab
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(lab.directory))
    assert lab.is_well()
    lab.wait_until("nothing is left of the test before", lambda: lab.holdings().flows == 0)
    before = lab.holdings()
    yield lab
    lab.wait_until(f"all is as before, {before}", lambda: lab.holdings() == before)
    assert lab.is_well()

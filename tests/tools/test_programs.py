"""Programs that tests run: without one a test is skipped, or fails where nothing may be skipped."""

import pytest
from tests.programs import REQUIRED_VARIABLE, find, need


def test_test_without_its_program_is_skipped_unless_it_must_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason names only the missing programs."""
    monkeypatch.delenv(REQUIRED_VARIABLE, raising=False)
    need(["sh", "env"])
    with pytest.raises(pytest.skip.Exception, match="^not installed: no-such, nor-such$"):
        need(["sh", "no-such", "nor-such"])
    monkeypatch.setenv(REQUIRED_VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match=f"no-such .{REQUIRED_VARIABLE} is set"):
        need(["no-such"])
    need(["sh"])


def test_programs_of_administrators_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's PATH may not contain their folders."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert find("ldconfig") in ("/usr/sbin/ldconfig", "/sbin/ldconfig")

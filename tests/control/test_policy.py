"""Who may talk to whom, as the switch in force says, and that the reason names what decided."""

import pytest

from vsock.switch import Switch


@pytest.mark.parametrize(
    ("source", "destination", "is_allowed", "rule"),
    [
        ("host", "alpha", True, "host"),
        ("gamma", "host", True, "host"),
        ("alpha", "beta", True, "group"),
        ("beta", "alpha", True, "group"),
        ("alpha", "gamma", False, "default"),
        ("gamma", "gamma", True, "self"),
        ("alpha", "alpha", True, "self"),
        ("host", "host", True, "self"),
    ],
)
def test_verdict_and_its_rule(
    switch: Switch, source: str, destination: str, is_allowed: bool, rule: str
) -> None:
    """The host and a guest may talk, two guests only with a shared group, and each to itself (N12)."""
    verdict = switch.explain(source, destination)
    assert (verdict.is_allowed, verdict.rule) == (is_allowed, rule)


def test_reason_names_the_shared_group(switch: Switch) -> None:
    """A person who asks why learns which group to look at."""
    assert switch.explain("alpha", "beta").reason == "alpha and beta share the group lab"


def test_refusal_says_what_to_do(switch: Switch) -> None:
    """A person who is refused learns how not to be."""
    assert "give both the same one" in switch.explain("alpha", "gamma").reason

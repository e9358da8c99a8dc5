"""Who may connect to whom, as the switch in force says, and that the reason names the rule."""

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
    """The host and a guest may connect, two guests only with a shared group, and each to itself (N12)."""
    verdict = switch.explain(source, destination)
    assert (verdict.is_allowed, verdict.rule) == (is_allowed, rule)


def test_reason_names_the_shared_group(switch: Switch) -> None:
    """The reason has the name of the group."""
    assert switch.explain("alpha", "beta").reason == "alpha and beta share the group lab"


def test_refusal_says_what_to_do(switch: Switch) -> None:
    """The reason of a refusal says how to allow the connection."""
    assert "give both the same one" in switch.explain("alpha", "gamma").reason

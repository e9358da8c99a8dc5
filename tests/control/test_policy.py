"""Who may connect to whom, and that the reason names the rule."""

import pytest

from vsock.control.policy import HOST, Party, decide

ALPHA = Party("alpha", 3, frozenset({"lab"}))
BETA = Party("beta", 4, frozenset({"lab", "web"}))
GAMMA = Party("gamma", 5)


@pytest.mark.parametrize(
    ("source", "destination", "is_allowed", "rule"),
    [
        (HOST, ALPHA, True, "host"),
        (GAMMA, HOST, True, "host"),
        (ALPHA, BETA, True, "group"),
        (BETA, ALPHA, True, "group"),
        (ALPHA, GAMMA, False, "default"),
        (GAMMA, GAMMA, True, "self"),
        (ALPHA, ALPHA, True, "self"),
        (HOST, HOST, True, "self"),
    ],
)
def test_verdict_and_its_rule(
    source: Party, destination: Party, is_allowed: bool, rule: str
) -> None:
    """The host and a guest may connect, two guests only with a shared group, and each to itself (N12)."""
    verdict = decide(source, destination)
    assert (verdict.is_allowed, verdict.rule) == (is_allowed, rule)


def test_reason_names_the_shared_group() -> None:
    """The reason has the name of the group."""
    assert decide(ALPHA, BETA).reason == "alpha and beta share the group lab"


def test_refusal_says_what_to_do() -> None:
    """The reason of a refusal says how to allow the connection."""
    assert "give both the same one" in decide(ALPHA, GAMMA).reason

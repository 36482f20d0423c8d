"""The thresholds that a policy file may state: docs/policy.md."""

from typing import Any

import pytest

from transforms.policy.thresholds import Policy, policy_from


@pytest.mark.parametrize("content", [None, {}])
def test_what_is_not_stated_keeps_its_built_in_value(content: Any) -> None:
    assert policy_from(content) == Policy()
    stated = policy_from({"pain": {"emergency": 8}})
    assert (stated.pain.emergency, stated.pain.alert) == (8, 4)
    assert stated.missed_sessions == Policy().missed_sessions


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"pains": {}}, "pains: Extra inputs are not permitted"),
        ({"pain": {"emergency": 11}}, "pain.emergency: Input should be less than or equal to 10"),
        ({"pain": {"emergency": "8"}}, "pain.emergency: Input should be a valid number"),
        ([], "the file: Input should be a valid dictionary or instance of Policy"),
        (
            {"missed_sessions": {"gap_days": 0}},
            "missed_sessions.gap_days: Input should be greater than or equal to 1",
        ),
    ],
)
def test_an_error_names_the_threshold_and_its_rule(content: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^[\w. ]+: .+$") as raised:
        policy_from(content)
    assert str(raised.value) == sentence

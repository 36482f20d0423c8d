"""The calculations that every example of this directory runs through."""

import pytest

from tests.support.examples import Calculation, Oracle, Product

CALCULATIONS = {"oracle": Oracle(), "together": Product(), "in turn": Product(in_turn=True)}


@pytest.fixture(params=CALCULATIONS)
def calculated(request: pytest.FixtureRequest) -> Calculation:
    return CALCULATIONS[request.param]

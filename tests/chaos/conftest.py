"""An event loop for servers in this process, for the tests of what misbehaves."""

from collections.abc import Iterator

import pytest

from tests.chaos.background import Background, background


@pytest.fixture
def loop() -> Iterator[Background]:
    with background() as running:
        yield running

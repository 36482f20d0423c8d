"""What a rebuild says of itself."""

import logging

import pytest

from transforms.steps.rebuilding import Progress, Rebuild
from transforms.times import MICROS

REBUILD = Rebuild(1_000 * MICROS, 2_000 * MICROS)


def test_progress_is_told_by_publish_time_and_not_for_every_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress()
    for second in range(1_250, 1_300):
        progress.note(REBUILD, second * MICROS)
    progress.finish()
    progress.finish()
    progress.note(REBUILD, 1_400 * MICROS)
    assert caplog.messages == [
        "Rebuild: 25 % taken in, messages up to 1970-01-01T00:20:50Z of 1970-01-01T00:33:20Z.",
        "Rebuild: all messages are taken in, rows are written.",
    ]


@pytest.mark.parametrize(("second", "share"), [(0, 0), (1_000, 0), (1_999, 99), (2_000, 100), (9_000, 100)])
def test_the_share_is_from_nothing_to_all(second: int, share: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Progress().note(REBUILD, second * MICROS)
    assert caplog.messages[0].startswith(f"Rebuild: {share} % taken in")

"""How many of a patient's ids are remembered, and for how long."""

import pytest

from transforms import deduplication
from transforms.deduplication import SeenIds

HOUR = 3600
NOW = 500_000 * HOUR


def test_ids_are_remembered_for_24_hours_and_forgotten_within_the_next() -> None:
    seen = SeenIds()
    assert seen.is_new("a", NOW)
    seen.forget(NOW + 24 * HOUR)
    assert not seen.is_new("a", NOW + 24 * HOUR)
    seen.forget(NOW + 25 * HOUR)
    assert seen.hours == {}
    assert seen.is_new("a", NOW + 25 * HOUR)


def test_of_more_ids_than_can_be_remembered_the_newest_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deduplication, "REMEMBERED_IDS", 10)
    seen = SeenIds()
    for number in range(25):
        assert seen.is_new(f"id {number}", NOW + number // 6 * HOUR)
    seen.forget(NOW + 4 * HOUR)
    assert [number for number in range(25) if not seen.is_new(f"id {number}", NOW)] == list(range(15, 25))

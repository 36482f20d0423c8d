"""Deduplication: an event that has been seen before, from any subscription, is dropped and counted.

Two events are equal if patient, kind and id are equal. So one patient's phone cannot make another patient's
events duplicates, and each projection can store the ids in the patient's state, which it reads and writes
anyway.
"""

import hashlib

import msgspec

from transforms.events import Event

REMEMBERED_SECONDS = 24 * 3600
# Per patient; the oldest are dropped first. Many times the events of a day of exercise, yet quick to search.
REMEMBERED_IDS = 2**15

_HOUR_SECONDS = 3600
# Short, so that a day of ids is small; long enough that two ids of a patient never collide.
_DIGEST_BYTES = 8


# Both kinds share one namespace: an item's id defaults to its event's, so two equal ids would be one item.
_ITEM_KINDS = {"alert": "item", "feedback": "item"}


def deduplication_key(event: Event) -> str:
    """Deduplication key, unique per patient."""
    return f"{_ITEM_KINDS.get(event.kind, event.kind)} {event.event_id}"


class SeenIds(msgspec.Struct, array_like=True):
    """A patient's event ids: for each hour since the epoch, the digests of those first seen in it."""

    hours: dict[int, bytearray] = {}

    def is_new(self, key: str, now: int) -> bool:
        """Whether a key is seen for the first time; stores it. `now` is in seconds since the epoch."""
        digest = hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES).digest()
        for digests in self.hours.values():
            # A match across two digests is as unlikely as a collision.
            if digest in digests:
                return False
        self.hours.setdefault(now // _HOUR_SECONDS, bytearray()).extend(digest)
        return True

    def forget(self, now: int) -> None:
        """Drops ids that are too old, and the oldest ones above the limit. `now` is in seconds."""
        oldest = (now - REMEMBERED_SECONDS) // _HOUR_SECONDS
        for hour in [hour for hour in self.hours if hour < oldest]:
            del self.hours[hour]
        excess = sum(map(len, self.hours.values())) - REMEMBERED_IDS * _DIGEST_BYTES
        for hour in sorted(self.hours) if excess > 0 else ():
            digests = self.hours[hour]
            dropped = min(excess, len(digests))
            del digests[:dropped]
            excess -= dropped

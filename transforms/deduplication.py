"""Deduplication: an event that was seen before, by whichever subscription, is dropped and counted.

It is the same event if it is of the same patient and kind and has the same id. So no patient's events can be
lost to an id that another's phone has used too, and each patient's projections can remember the ids
themselves, in the state that they read and write anyway.
"""

import hashlib

import msgspec

from transforms.events import Event

REMEMBERED_SECONDS = 24 * 3600
# Of a patient, the newest: many times what a day of exercise makes, and little enough to be looked through.
REMEMBERED_IDS = 2**15

_HOUR_SECONDS = 3600
# So few that a day of ids is small, so many that no two ids of a patient ever have the same.
_DIGEST_BYTES = 8


# By default an item of the work queue has its event's id: events of two kinds would make one item.
_ITEM_KINDS = {"alert": "item", "feedback": "item"}


def deduplication_key(event: Event) -> str:
    """By what an event is known among its patient's."""
    return f"{_ITEM_KINDS.get(event.kind, event.kind)} {event.event_id}"


class SeenIds(msgspec.Struct, array_like=True):
    """The ids of a patient: for each hour (since the epoch) the digests of those first seen then."""

    hours: dict[int, bytearray] = {}

    def is_new(self, name: str, now: int) -> bool:
        """Whether that is seen for the first time; it is remembered. `now` is in seconds since the epoch."""
        digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()
        for digests in self.hours.values():
            # Found across two digests is as unlikely as found by chance.
            if digest in digests:
                return False
        self.hours.setdefault(now // _HOUR_SECONDS, bytearray()).extend(digest)
        return True

    def forget(self, now: int) -> None:
        """Drops what need not be remembered any more, and of more than can be the oldest."""
        oldest = (now - REMEMBERED_SECONDS) // _HOUR_SECONDS
        for hour in [hour for hour in self.hours if hour < oldest]:
            del self.hours[hour]
        excess = sum(map(len, self.hours.values())) - REMEMBERED_IDS * _DIGEST_BYTES
        for hour in sorted(self.hours) if excess > 0 else ():
            digests = self.hours[hour]
            dropped = min(excess, len(digests))
            del digests[:dropped]
            excess -= dropped

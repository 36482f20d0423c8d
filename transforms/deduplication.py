"""Deduplication: an event that was seen before, by whichever subscription, is dropped and counted.

It is the same event if it is of the same patient and kind and has the same id. So no patient's events can be
lost to an id that another's phone has used too, and each patient's projections can remember the ids
themselves, in the state that they read and write anyway.
"""

import hashlib

import msgspec

from transforms.coders import AnyEvent

REMEMBERED_SECONDS = 24 * 3600

_HOUR_SECONDS = 3600
# So few that a day of ids is small, so many that no two ids of a patient ever have the same.
_DIGEST_BYTES = 8


def name_of(event: AnyEvent) -> str:
    """By what an event is known among its patient's."""
    return f"{event.kind} {event.event_id}"


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

    def forget_before(self, moment: int) -> None:
        """Drops the ids of the hours that ended before that."""
        oldest = moment // _HOUR_SECONDS
        for hour in [hour for hour in self.hours if hour < oldest]:
            del self.hours[hour]

"""When which fault happens: seeded, and counted by type."""

from collections import Counter
from collections.abc import Sequence
from random import Random

# Of the calls that can meet a fault which has never happened.
_FIRST_SHARE = 0.5


class Schedule:
    """Draws for each call whether it meets a fault, and which; equal seeds draw alike."""

    def __init__(self, seed: int, share: float) -> None:
        """`share` of the calls meet a fault, once each fault has happened."""
        self.share = share
        self.rng = Random(seed)
        self.calls = 0
        self.faults: Counter[str] = Counter()

    def draw(self, faults: Sequence[str]) -> str | None:
        """The fault that the next call meets, of those that it can meet; mostly none.

        The one that has happened least, and soon if it never has: so each happens, in a short run too.
        """
        self.calls += 1
        fewest = min(self.faults[fault] for fault in faults)
        # Of some calls there are only ten in a short run.
        share = self.share if fewest else max(self.share, _FIRST_SHARE)
        if self.rng.random() >= share:
            return None
        fault = self.rng.choice([fault for fault in faults if self.faults[fault] == fewest])
        self.faults[fault] += 1
        return fault

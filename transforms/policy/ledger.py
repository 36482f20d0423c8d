"""The ledger of findings: each is announced once, and withdrawn if a late event makes it untrue."""

import hashlib
from collections.abc import Iterable

import msgspec
import orjson

from transforms.policy.findings import Finding, needs_review, scope_of
from transforms.policy.nudges import Origin, PolicyOutput, announce, nudge_id, review_item, withdrawal
from transforms.times import DAY_US, day_of


class _LedgerEntry(msgspec.Struct, array_like=True, gc=False):
    """What the ledger keeps of a finding; `standing` until a late event makes it untrue.

    While it `is_open` it does not age.
    """

    at_us: int
    newest_us: int
    scope: str
    digest: bytes = b""
    revision: int = 0
    announced: bool = False
    standing: bool = True
    is_open: bool = False

    @property
    def day(self) -> int:
        return day_of(self.at_us)

    def is_old(self, horizon_us: int) -> bool:
        return self.newest_us < horizon_us and not self.is_open


class FindingLedger(msgspec.Struct, array_like=True):
    """What has been found for one patient by one projector, so that each thing is said once.

    `entries` holds the findings since the horizon by nudge id; `last_days` the day of the newest
    finding of each scope that has passed it, so that a limit outlives the state it was found in.
    """

    entries: dict[str, _LedgerEntry] = {}
    last_days: dict[str, int] = {}

    def spaced(self, candidates: Iterable[Finding], since_day: int, horizon_us: int) -> list[Finding]:
        """Of one rule's candidates from a day on, by time, those that its `repeat_days` lets through."""
        since_us = _examined_since_us(since_day, horizon_us)
        chosen = []
        last_day: int | None = None
        for finding in candidates:
            day = day_of(finding.at_us)
            if last_day is None:
                last_day = self._last_day(scope_of(finding), since_us, horizon_us)
            if last_day is None or day - last_day >= finding.repeat_days:
                chosen.append(finding)
                last_day = day
        return chosen

    def _last_day(self, scope: str, since_us: int, horizon_us: int) -> int | None:
        """The day of the newest finding of a scope among those that are not said again from a time on."""
        days = [
            entry.day
            for entry in self.entries.values()
            if entry.standing
            and entry.scope == scope
            and (entry.at_us < since_us or entry.is_old(horizon_us))
        ]
        if scope in self.last_days:
            days.append(self.last_days[scope])
        return max(days, default=None)

    def reconcile(
        self,
        origin: Origin,
        findings: Iterable[Finding],
        since_day: int,
        horizon_us: int,
        now_us: int,
        announce_since_us: int | None,
    ) -> PolicyOutput:
        """Compares what holds now with what was said before.

        `findings` is everything that holds from `since_day` on, of which what is before `horizon_us`
        is left out; what holds for the first time is announced if it is not older than
        `announce_since_us` (null: nothing is announced), what changed is sent to the work queue again,
        what no longer holds is withdrawn from it. What began before `horizon_us` stays as it was, unless
        it is open: its evidence may have been forgotten, and no event that is not too late disproves it.
        """
        outcome = PolicyOutput([], [])
        standing = {}
        for finding in findings:
            key = nudge_id(origin.patient_id, finding)
            if finding.newest_us >= horizon_us or (finding.is_open and key in self.entries):
                standing[key] = finding
        since_us = _examined_since_us(since_day, horizon_us)
        for key, entry in self.entries.items():
            is_examined = entry.is_open or (entry.at_us >= since_us and not entry.is_old(horizon_us))
            if is_examined and entry.standing and key not in standing:
                entry.standing = entry.is_open = False
                if entry.digest:
                    entry.digest, entry.revision = b"", max(now_us, entry.revision + 1)
                    outcome.review_items.append(withdrawal(origin, key, entry.revision))
        for key, finding in standing.items():
            entry = self.entries.setdefault(key, _LedgerEntry(0, 0, scope_of(finding)))
            has_ended = entry.is_open and not finding.is_open
            # What was said when it began is enough: the queue may have settled and forgotten it by now.
            stays = has_ended and finding.at_us < horizon_us
            entry.at_us, entry.newest_us, entry.standing = finding.at_us, finding.newest_us, True
            entry.is_open = finding.is_open
            if needs_review(finding) and self._is_news(origin, finding, entry) and not stays:
                entry.revision = max(now_us, entry.revision + 1)
                outcome.review_items.append(review_item(origin, finding, entry.revision))
            recent = announce_since_us is not None and finding.newest_us >= announce_since_us
            if recent and not entry.announced and not self._said_nearby(finding, entry):
                entry.announced = True
                outcome.nudges.append(announce(origin, finding, now_us))
        return outcome

    def has_old(self, horizon_us: int) -> bool:
        """Whether there is anything to age out."""
        return any(entry.is_old(horizon_us) for entry in self.entries.values())

    def age_out(self, horizon_us: int) -> None:
        """Forgets what is before the horizon, except for the limits."""
        for key in [key for key, entry in self.entries.items() if entry.is_old(horizon_us)]:
            entry = self.entries.pop(key)
            if entry.standing:
                self.last_days[entry.scope] = max(entry.day, self.last_days.get(entry.scope, entry.day))

    def _said_nearby(self, finding: Finding, entry: _LedgerEntry) -> bool:
        """Whether a late event has only moved a finding whose limit has been used up by its announcement."""
        return finding.repeat_days > 0 and any(
            other.announced
            and other.scope == entry.scope
            and abs(other.day - entry.day) < finding.repeat_days
            for other in self.entries.values()
        )

    @staticmethod
    def _is_news(origin: Origin, finding: Finding, entry: _LedgerEntry) -> bool:
        """Whether the work queue knows it otherwise, or not at all; from now on it counts as known."""
        content = orjson.dumps((finding.at_us, finding.session_id, finding.data, origin.site_id))
        known, entry.digest = entry.digest, hashlib.blake2b(content, digest_size=8).digest()
        return entry.digest != known


def _examined_since_us(since_day: int, horizon_us: int) -> int:
    """From when on the rules say everything that holds; what began before stays as it was."""
    return max(since_day * DAY_US, horizon_us)

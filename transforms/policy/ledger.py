"""The ledger of findings: each is announced once, and withdrawn if a late event makes it untrue."""

import hashlib
from collections.abc import Iterable

import msgspec
import orjson

from transforms.policy.findings import Finding, needs_review, scope_of
from transforms.policy.nudges import Origin, PolicyOutput, announce, nudge_id, review_item, withdrawal
from transforms.times import DAY_US, day_of


class _LedgerEntry(msgspec.Struct, array_like=True, gc=False):
    """A finding as the ledger stores it.

    `digest` is that of the review item's last revision, empty without one. A finding is `standing` until a
    late event makes it untrue, and does not age while it `is_open`.
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
    """The findings of one patient in one projection, so that each is announced once.

    `entries` holds the findings since the horizon, by nudge id. `last_days` holds, by scope, the day of the
    newest finding older than that, so that `repeat_days` also applies across the horizon.
    """

    entries: dict[str, _LedgerEntry] = {}
    last_days: dict[str, int] = {}

    def spaced(self, candidates: Iterable[Finding], since_day: int, horizon_us: int) -> list[Finding]:
        """The findings that `repeat_days` lets through.

        `candidates` are all those of one rule and exercise from `since_day` on, in order of time.
        """
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
        """The day of the newest finding of a scope that is not evaluated again from `since_us` on."""
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
        """Compares the findings that hold now with those in the ledger.

        `findings` are all that hold from `since_day` on; those before `horizon_us` are ignored. A new finding
        is announced, unless it is older than `announce_since_us` (null: nothing is announced). A changed
        finding sends its review item again. A finding that no longer holds has its review item withdrawn.

        A finding from before `horizon_us` stays as it was, unless it is open: the events behind it may have
        been forgotten, and any event that could disprove it is too late.
        """
        output = PolicyOutput([], [])
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
                    output.review_items.append(withdrawal(origin, key, entry.revision))
        for key, finding in standing.items():
            entry = self.entries.setdefault(key, _LedgerEntry(0, 0, scope_of(finding)))
            has_ended = entry.is_open and not finding.is_open
            # Its review item stays as it is: a therapist may have closed it, and the queue forgotten it.
            is_settled = has_ended and finding.at_us < horizon_us
            entry.at_us, entry.newest_us, entry.standing = finding.at_us, finding.newest_us, True
            entry.is_open = finding.is_open
            if needs_review(finding) and self._has_changed(origin, finding, entry) and not is_settled:
                entry.revision = max(now_us, entry.revision + 1)
                output.review_items.append(review_item(origin, finding, entry.revision))
            recent = announce_since_us is not None and finding.newest_us >= announce_since_us
            if recent and not entry.announced and not self._is_repeat(finding, entry):
                entry.announced = True
                output.nudges.append(announce(origin, finding, now_us))
        return output

    def has_old(self, horizon_us: int) -> bool:
        """Whether `age_out` would remove anything."""
        return any(entry.is_old(horizon_us) for entry in self.entries.values())

    def age_out(self, horizon_us: int) -> None:
        """Removes findings older than the horizon, but remembers what `repeat_days` needs of them."""
        for key in [key for key, entry in self.entries.items() if entry.is_old(horizon_us)]:
            entry = self.entries.pop(key)
            if entry.standing:
                self.last_days[entry.scope] = max(entry.day, self.last_days.get(entry.scope, entry.day))

    def _is_repeat(self, finding: Finding, entry: _LedgerEntry) -> bool:
        """Whether a finding of its scope has been announced within `repeat_days`, before or after it."""
        return finding.repeat_days > 0 and any(
            other.announced
            and other.scope == entry.scope
            and abs(other.day - entry.day) < finding.repeat_days
            for other in self.entries.values()
        )

    @staticmethod
    def _has_changed(origin: Origin, finding: Finding, entry: _LedgerEntry) -> bool:
        """Whether the review item differs from its last revision; the new one counts as sent."""
        content = orjson.dumps((finding.at_us, finding.session_id, finding.data, origin.site_id))
        known, entry.digest = entry.digest, hashlib.blake2b(content, digest_size=8).digest()
        return entry.digest != known


def _examined_since_us(since_day: int, horizon_us: int) -> int:
    """The time from which all findings are evaluated again; older ones stay as they were."""
    return max(since_day * DAY_US, horizon_us)

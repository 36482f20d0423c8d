"""A patient's consents: which events they withhold, and whether rows may be shown."""

from bisect import bisect_right, insort
from typing import Literal, NamedTuple, cast

from transforms.events import ConsentFact, Event, StatedConsent

ConsentMode = Literal["enforce", "require", "off"]
CONSENT_MODES: tuple[ConsentMode, ...] = ("enforce", "require", "off")

ConsentStatus = Literal["granted", "revoked", "expired", "unknown"]

# Other types of consent (marketing, research) do not govern the collection of data.
GOVERNING_TYPE = "data_collection"


class Decision(NamedTuple):
    """One decision; times are microseconds since the epoch."""

    effective_us: int
    ts_us: int
    event_id: str
    status: StatedConsent
    expires_us: int | None

    def status_at(self, at_us: int) -> ConsentStatus:
        """The status at a time from `effective_us` on."""
        if self.status == "revoked":
            return "revoked"
        if self.expires_us is not None and self.expires_us <= at_us:
            return "expired"
        return "unknown" if self.status == "pending" else self.status


class ConsentLog:
    """A patient's decisions, in the order in which they take effect."""

    def __init__(self, decisions: list[Decision] | None = None) -> None:
        """`decisions` are in the order in which they take effect."""
        self.decisions = decisions or []

    def add(self, event: Event) -> None:
        """Applies a consent event."""
        fact = cast(ConsentFact, event.fact)
        decision = Decision(fact.effective_us, event.ts_us, event.event_id, fact.status, fact.expires_us)
        if fact.consent_type == GOVERNING_TYPE and decision not in self.decisions:
            insort(self.decisions, decision, key=_order)

    def including(self, events: list[Event]) -> "ConsentLog":
        """The log as it will be after these consent events."""
        log = ConsentLog(list(self.decisions))
        for event in events:
            log.add(event)
        return log

    def status_at(self, at_us: int) -> ConsentStatus:
        """The status of the newest decision in force at a time; `unknown` if there is none."""
        # The newest decision is usually the one in force.
        for decision in reversed(self.decisions):
            if decision.effective_us <= at_us:
                return decision.status_at(at_us)
        return "unknown"

    def admits(self, at_us: int, mode: ConsentMode) -> bool:
        """Whether an event at that time may be used."""
        if mode == "off":
            return True
        status = self.status_at(at_us)
        return status == "granted" if mode == "require" else status in ("granted", "unknown")

    def next_change_us(self, now_us: int) -> int | None:
        """The next time at which the status may change without an event, or null."""
        times = [
            time
            for decision in self.decisions
            for time in (decision.effective_us, decision.expires_us)
            if time is not None and time > now_us
        ]
        return min(times, default=None)

    def prune(self, horizon_us: int) -> bool:
        """Removes decisions superseded before the horizon; returns whether there were any."""
        # If the second decision is not in force at the horizon, none has been superseded.
        if len(self.decisions) < 2 or self.decisions[1].effective_us > horizon_us:
            return False
        index = bisect_right(self.decisions, horizon_us, key=lambda decision: decision.effective_us)
        del self.decisions[: index - 1]
        return True


def is_visible(status: ConsentStatus) -> bool:
    """Whether a patient's rows may be shown at that consent status."""
    return status not in ("revoked", "expired")


def _order(decision: Decision) -> tuple[int, int, str]:
    return decision[:3]

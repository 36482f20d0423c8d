"""What the projections share: settings, outcomes, and the rules about consent and time."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from transforms.events import REVIEW, Event
from transforms.policy.findings import Finding, needs_review
from transforms.policy.nudges import Nudge, Origin, PolicyOutput, announce, review_item
from transforms.policy.thresholds import Policy
from transforms.projections.consent import ConsentMode, is_visible
from transforms.projections.ordering import about_us
from transforms.projections.state import ALWAYS, NEVER, STATE_DAYS, PatientState, Trigger
from transforms.rows import Row
from transforms.times import DAY_US, HOUR_US

PROCESSED = "processed"

WITHHELD = "withheld"

TOO_LATE = "too_late"


class RuleSettings(NamedTuple):
    """What an operator sets of the rules.

    `rebuilt_since_us` is from when on a job that builds its state again reads every event once more.
    """

    policy: Policy = Policy()
    consent: ConsentMode = "enforce"
    prescribed_sessions_per_week: int = 7
    nudge_max_age_hours: float = 24
    rebuilt_since_us: int | None = None


@dataclass(slots=True)
class Output:
    """What a projection leads to: (table, row) pairs, nudges, and events for the work queue."""

    rows: list[tuple[str, Row]] = field(default_factory=list)
    nudges: list[Nudge] = field(default_factory=list)
    review_items: list[Event] = field(default_factory=list)

    def add(self, announcement: PolicyOutput) -> None:
        """Takes in what findings lead to."""
        self.nudges += announcement.nudges
        self.review_items += announcement.review_items


class Projector[S: PatientState](ABC):
    """One projection: pure rules over a patient's state.

    `counted_kinds` are the kinds of event that it accounts for; every kind is counted by one
    projector alone, however many receive it.
    """

    tables: ClassVar[tuple[str, ...]]
    counted_kinds: ClassVar[frozenset[str]]
    state_type: type[S]

    def __init__(self, settings: RuleSettings) -> None:
        """With what the operator has set."""
        self.settings = settings

    @abstractmethod
    def apply(self, state: S, event: Event, trigger: Trigger, now_us: int, output: Output) -> str:
        """Takes an event in: PROCESSED, or another outcome and the state is as it was."""

    @abstractmethod
    def project(self, state: S, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds the rows that have changed and what the policy finds."""

    @abstractmethod
    def project_urgent(self, state: S, trigger: Trigger, now_us: int, output: Output) -> None:
        """In place of `project` while rows are held back: adds only what must not wait."""

    def wake(self, state: S, now_us: int) -> S:
        """Takes in that time has passed."""
        return state.forget_if_silent(now_us)

    def wake_times_us(self, state: S, now_us: int) -> list[int | None]:
        """When time alone may next change something; null and past times mean nothing."""
        return [state.silent_from_us(), state.consents.next_change_us(now_us)]

    def is_visible(self, state: PatientState, now_us: int) -> bool:
        """Whether the patient's rows may be shown, and findings announced."""
        return self.settings.consent == "off" or is_visible(state.consents.status_at(now_us))

    def expect(self, state: PatientState, events: Sequence[Event]) -> None:
        """Has events that arrive together judged by the newest of them that no consent withholds.

        They are in the order of `consents_first`, and have not been taken in yet.
        """
        consents = [event for event in events if event.kind == "consent"]
        decided = state.consents.including(consents) if consents else state.consents
        expected_us = consents[-1].ts_us if consents else 0
        for event in reversed(events[len(consents) :]):
            if event.ts_us <= expected_us:
                break
            if event.kind != REVIEW and decided.admits(event.ts_us, self.settings.consent):
                expected_us = max(expected_us, about_us(event))
        state.expected_us = expected_us

    def admit(self, state: PatientState, event: Event, time_us: int, now_us: int) -> str:
        """PROCESSED if the event may be used, and then what every event says is taken in.

        `time_us` is the time that the event is about.
        """
        if event.kind == "consent":
            state.consents.add(event)
            state.changed_since = ALWAYS
        elif time_us < max(state.newest_us, state.expected_us) - STATE_DAYS * DAY_US:
            return TOO_LATE
        elif not state.consents.admits(event.ts_us, self.settings.consent):
            return WITHHELD
        state.note(event, time_us, now_us)
        if state.consents.prune(state.horizon_us):
            state.changed_since = ALWAYS
        return PROCESSED

    @staticmethod
    def take_changed_since(state: PatientState, trigger: Trigger, now_us: int) -> int:
        """The first day of which something is to be calculated again; to be asked once in a projection.

        That is everything at a timer, when consent has changed (by event or by itself), and when
        something has aged out.
        """
        status_changes_us = state.consents.next_change_us(state.projected_us)
        has_changed = status_changes_us is not None and status_changes_us <= now_us
        if has_changed or trigger.event_id is None or state.findings.has_old(state.horizon_us):
            state.changed_since = ALWAYS
        since_day, state.changed_since, state.projected_us = state.changed_since, NEVER, now_us
        return since_day

    def reconcile(
        self, state: PatientState, findings: Iterable[Finding], since_day: int, trigger: Trigger, now_us: int
    ) -> PolicyOutput:
        """What follows from everything that holds from a day on."""
        announcement = state.findings.reconcile(
            self.origin(state, trigger),
            findings,
            since_day,
            state.horizon_us,
            now_us,
            self.announce_since_us(state, now_us),
        )
        state.findings.age_out(state.horizon_us)
        return announcement

    def announce_since_us(self, state: PatientState, now_us: int) -> int | None:
        """From when on findings are announced; null while the patient's consent is withdrawn."""
        if not self.is_visible(state, now_us):
            return None
        hours = self.settings.nudge_max_age_hours
        return now_us - int(hours * HOUR_US) if hours else 0

    def announce_at_once(
        self, state: PatientState, finding: Finding, trigger: Trigger, now_us: int, output: Output
    ) -> None:
        """Announces a finding that stems from one event alone, and so needs no ledger."""
        since_us = self.announce_since_us(state, now_us)
        origin = self.origin(state, trigger)
        if since_us is not None and finding.newest_us >= since_us:
            output.nudges.append(announce(origin, finding, now_us))
        if needs_review(finding):
            output.review_items.append(review_item(origin, finding, now_us))

    @staticmethod
    def origin(state: PatientState, trigger: Trigger) -> Origin:
        """Whom findings are about."""
        return Origin(
            trigger.patient_id, state.site[2] if state.site else None, trigger.event_id, trigger.publish_us
        )

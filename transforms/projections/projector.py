"""What the projections share: settings, outcomes, and the rules about consent and time."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, NamedTuple

from transforms.events import REVIEW, Event, Kind
from transforms.policy.findings import Finding, needs_review
from transforms.policy.nudges import Nudge, Origin, PolicyOutput, announce, review_item
from transforms.policy.thresholds import Policy
from transforms.projections.consent import ConsentMode, is_visible
from transforms.projections.ordering import about_us
from transforms.projections.state import ALWAYS, NEVER, STATE_DAYS, PatientState, Trigger
from transforms.rows import Row
from transforms.times import DAY_US, HOUR_US

Outcome = Literal["processed", "withheld", "too_late"]
PROCESSED: Final = "processed"
WITHHELD: Final = "withheld"
TOO_LATE: Final = "too_late"


class RuleSettings(NamedTuple):
    """The settings of the rules that an operator chooses.

    A rebuild reads every event published since `rebuilt_since_us` (microseconds since the epoch) again.
    """

    policy: Policy = Policy()
    consent: ConsentMode = "enforce"
    prescribed_sessions_per_week: int = 7
    nudge_max_age_hours: float = 24
    rebuilt_since_us: int | None = None


@dataclass(slots=True)
class Output:
    """What a projection leads to: (table, row) pairs, nudges, and review items for the work queue."""

    rows: list[tuple[str, Row]] = field(default_factory=list)
    nudges: list[Nudge] = field(default_factory=list)
    review_items: list[Event] = field(default_factory=list)

    def add(self, found: PolicyOutput) -> None:
        """Adds what findings lead to."""
        self.nudges += found.nudges
        self.review_items += found.review_items


class Projector[S: PatientState](ABC):
    """One projection: pure rules over a patient's state.

    `counted_kinds` are the kinds of event whose outcomes it counts. Several projectors may receive a kind,
    but exactly one counts it.
    """

    tables: ClassVar[tuple[str, ...]]
    counted_kinds: ClassVar[frozenset[Kind]]
    state_type: type[S]

    def __init__(self, settings: RuleSettings) -> None:
        """Uses the operator's settings."""
        self.settings = settings

    @abstractmethod
    def apply(self, state: S, event: Event, trigger: Trigger, now_us: int, output: Output) -> Outcome:
        """Applies an event to the state; unless the outcome is PROCESSED, the state stays as it was."""

    @abstractmethod
    def project(self, state: S, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds changed rows and what the policy finds to `output`."""

    @abstractmethod
    def project_urgent(self, state: S, trigger: Trigger, now_us: int, output: Output) -> None:
        """Replaces `project` during a hold-back: adds only what must not wait."""

    def wake(self, state: S, now_us: int) -> S:
        """Applies the passing of time."""
        return state.forget_if_silent(now_us)

    def wake_times_us(self, state: S, now_us: int) -> list[int | None]:
        """When the passing of time may change something; ignore null and past times."""
        return [state.silent_from_us(), state.consents.next_change_us(now_us)]

    def is_visible(self, state: PatientState, now_us: int) -> bool:
        """Whether the patient's rows may be shown and findings announced."""
        return self.settings.consent == "off" or is_visible(state.consents.status_at(now_us))

    def expect(self, state: PatientState, events: Sequence[Event]) -> None:
        """Prepares for events that arrive together: the newest one not withheld decides what is too late.

        They are in the order of `consents_first`, and have not been applied yet.
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

    def admit(self, state: PatientState, event: Event, time_us: int, now_us: int) -> Outcome:
        """Decides whether an event may be used; if so, applies what every kind of event states.

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
        """The first day to calculate again. Resets the mark, so call it once per projection.

        Everything is calculated again at a timer, after a change of consent (by an event or by the passing
        of time), and when a finding has aged out.
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
        """What follows from `findings`, which are all that hold from `since_day` on."""
        found = state.findings.reconcile(
            self.origin(state, trigger),
            findings,
            since_day,
            state.horizon_us,
            now_us,
            self.announce_since_us(state, now_us),
        )
        state.findings.age_out(state.horizon_us)
        return found

    def announce_since_us(self, state: PatientState, now_us: int) -> int | None:
        """The age limit of announcements, as a time; null while the patient's consent is withdrawn."""
        if not self.is_visible(state, now_us):
            return None
        hours = self.settings.nudge_max_age_hours
        return now_us - int(hours * HOUR_US) if hours else 0

    def announce_at_once(
        self, state: PatientState, finding: Finding, trigger: Trigger, now_us: int, output: Output
    ) -> None:
        """Announces a finding that depends on a single event, and so needs no ledger."""
        since_us = self.announce_since_us(state, now_us)
        origin = self.origin(state, trigger)
        if since_us is not None and finding.newest_us >= since_us:
            output.nudges.append(announce(origin, finding, now_us))
        if needs_review(finding):
            output.review_items.append(review_item(origin, finding, now_us))

    @staticmethod
    def origin(state: PatientState, trigger: Trigger) -> Origin:
        """The origin of the findings of one projection."""
        return Origin(
            trigger.patient_id, state.site[2] if state.site else None, trigger.event_id, trigger.publish_us
        )

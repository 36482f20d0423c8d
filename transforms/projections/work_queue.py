"""The work queue: what a therapist has to look at, from alerts, feedback and the policy's review items."""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import orjson

from transforms.events import AlertFact, Event, FeedbackFact, ItemStatus, Kind, Priority, ReviewItemFact
from transforms.policy.findings import Finding
from transforms.projections.adherence import pain_finding
from transforms.projections.projector import PROCESSED, Outcome, Output, Projector
from transforms.projections.state import NEVER, KnownPatient, PatientState, Trigger
from transforms.rows import row_key
from transforms.times import DAY_US, HOUR_US, to_rfc3339

TABLE = "work_queue"

PRIORITIES: dict[Priority, int] = {"critical": 1, "high": 2, "medium": 3, "low": 4}
DEADLINES_US: dict[Priority, int] = {
    "critical": 4 * HOUR_US,
    "high": 24 * HOUR_US,
    "medium": 48 * HOUR_US,
    "low": 7 * DAY_US,
}
STATUS_RANKS: dict[ItemStatus, int] = {
    "pending": 0,
    "acknowledged": 1,
    "in_review": 2,
    "resolved": 3,
    "dismissed": 3,
}
_FINAL_RANK = STATUS_RANKS["resolved"]

# Open items stay until they are closed, however old. The limit protects the state from a runaway client.
MAX_OPEN_ITEMS = 1000

_Stamp = tuple[int, str]
Statements = dict[str, tuple[int, str, Any]]

_decode_statements = msgspec.msgpack.Decoder(Statements).decode

# The prefix of a feedback's details among the stated fields.
_DETAIL = "detail."


class Item[S](msgspec.Struct, array_like=True, gc=False):
    """One item, merged from its events in any order.

    `stated` holds the newest value of each field, as (time, event id, value). `status` is the highest rank
    and the (time, event id, name) that reached it first. `critical` is the (time, id) of the earliest event
    that called the item critical. `revision` is that of a review item, 0 for other items.
    """

    item_id: str
    first: _Stamp
    item_type: str
    newest_us: int
    stated: S
    status: tuple[int, int, str, str] = (-1, 0, "", "pending")
    critical: _Stamp | None = None
    revision: int = 0
    withdrawn: bool = False

    @property
    def statements(self) -> Statements:
        """`stated`, decoded on first use."""
        if isinstance(self.stated, msgspec.Raw):
            self.stated = cast(S, _decode_statements(self.stated))
        return cast(Statements, self.stated)

    def state(self, name: str, stamp: _Stamp, value: Any) -> None:
        """Sets a field unless a newer event did; null states nothing."""
        if value is not None:
            known = self.statements.get(name)
            if known is None or stamp >= (known[0], known[1]):
                self.statements[name] = (*stamp, value)

    def reach(self, status: ItemStatus | None, stamp: _Stamp) -> None:
        """Moves the status forward, never back; among equal ranks, the first one reached counts."""
        if status is not None:
            rank = STATUS_RANKS[status]
            if rank > self.status[0] or (rank == self.status[0] and stamp < self.status[1:3]):
                self.status = (rank, *stamp, status)

    def value(self, name: str) -> Any:
        """The newest value of a field, or null."""
        stated = self.statements.get(name)
        return stated[2] if stated else None

    @property
    def is_open(self) -> bool:
        """Whether the item has not been closed or withdrawn."""
        return not self.withdrawn and self.status[0] < _FINAL_RANK


class WorkQueueState(PatientState):
    """A patient's items by id.

    `shown` is whether the rows are visible. `changed`, not stored, are the items that the events being
    applied concern, so that a patient with hundreds of items does not cost hundreds of rows per event.
    """

    STORED = tuple[list[Item[msgspec.Raw]], bool]

    def __init__(self) -> None:
        """A new patient."""
        super().__init__()
        self.items: dict[str, Item[Any]] = {}
        self.shown = True
        self.changed: set[str] = set()

    def start_from(self, known: KnownPatient) -> None:
        """Also adds the review items; their revision is 0 until a finding confirms them."""
        super().start_from(known)
        for item_id, created_us, urgency in known.review_items:
            item = self.items[item_id] = Item(item_id, (created_us, ""), "review", created_us, {})
            item.state("urgency", item.first, urgency)

    def release(self) -> None:
        """Also marks every item as changed, and withdraws review items that no finding has confirmed."""
        super().release()
        for item in self.items.values():
            item.withdrawn = item.withdrawn or (item.item_type == "review" and not item.revision)
        self.changed = set(self.items)

    def to_stored(self) -> tuple[list[Item[Any]], bool]:
        """The items, and whether they are shown."""
        return list(self.items.values()), self.shown

    def restore(self, stored: tuple[list[Item[Any]], bool]) -> None:
        """Sets every field."""
        items, self.shown = stored
        self.items = {item.item_id: item for item in items}
        self.changed = set()


def _context(item: Item[Any]) -> str | None:
    """What the item's events state beyond the columns, as an encoded JSON object, or null."""
    context: dict[str, Any] = {}
    for name in item.statements:
        if name.startswith(_DETAIL):
            value = item.value(name)
            detail = name.removeprefix(_DETAIL)
            context[detail] = orjson.loads(value) if detail == "content" else value
    alert_type, criteria, known = (item.value(name) for name in ("alert_type", "trigger_criteria", "context"))
    if alert_type is not None:
        context["alert_type"] = alert_type
    if criteria is not None:
        context["trigger_criteria"] = orjson.loads(criteria)
    if known is not None:
        context |= orjson.loads(known)
    return orjson.dumps(context, option=orjson.OPT_SORT_KEYS).decode() if context else None


class WorkQueue(Projector[WorkQueueState]):
    """Alerts, feedback, consents and the policy's review items → `work_queue` rows by item."""

    tables = (TABLE,)
    counted_kinds = frozenset[Kind]({"alert", "feedback"})
    state_type = WorkQueueState

    def apply(
        self, state: WorkQueueState, event: Event, trigger: Trigger, now_us: int, output: Output
    ) -> Outcome:
        """Merges an event into its item."""
        fact = event.fact
        if isinstance(fact, ReviewItemFact):
            # The projection that found it has admitted its events.
            self._merge_review_item(state, event, fact, now_us)
            return PROCESSED
        outcome = self.admit(state, event, event.ts_us, now_us)
        if outcome == PROCESSED and isinstance(fact, AlertFact):
            self._merge_alert(state, event, fact)
            self._report_pain(state, event, fact.pain_level, trigger, now_us, output)
        elif outcome == PROCESSED and isinstance(fact, FeedbackFact):
            self._merge_feedback(state, event, fact)
            self._report_pain(state, event, fact.pain_level, trigger, now_us, output)
        return outcome

    def _report_pain(
        self,
        state: WorkQueueState,
        event: Event,
        level: float | None,
        trigger: Trigger,
        now_us: int,
        output: Output,
    ) -> None:
        if finding := pain_finding(self.settings, event, level, None):
            self.announce_at_once(state, finding, trigger, now_us, output)

    @staticmethod
    def _item(state: WorkQueueState, item_id: str, item_type: str, event: Event) -> tuple[Item[Any], _Stamp]:
        stamp = (event.ts_us, event.event_id)
        item = state.items.get(item_id)
        if item is None:
            item = state.items[item_id] = Item(item_id, stamp, item_type, event.ts_us, {})
        if stamp < item.first and item.item_type != "review":
            item.first, item.item_type = stamp, item_type
        state.changed.add(item_id)
        item.newest_us = max(item.newest_us, event.ts_us)
        item.state("site_id", stamp, event.site_id)
        return item, stamp

    def _merge_alert(self, state: WorkQueueState, event: Event, fact: AlertFact) -> None:
        item, stamp = self._item(state, fact.alert_id, "alert", event)
        item.reach(fact.status or "pending", stamp)
        item.state("urgency", stamp, fact.urgency)
        item.state("therapist_id", stamp, fact.therapist_id)
        item.state("alert_type", stamp, fact.alert_type)
        item.state("description", stamp, fact.description)
        item.state("trigger_criteria", stamp, fact.trigger_criteria)
        item.state("context", stamp, fact.context)
        item.state("sla_deadline", stamp, fact.sla_deadline_us)
        item.state("resolved_at", stamp, fact.resolved_at_us)
        item.state(f"{_DETAIL}pain_level", stamp, fact.pain_level)
        if fact.urgency == "critical":
            item.critical = min(item.critical, stamp) if item.critical else stamp
        if item.critical:
            state.touch(item.critical[0])

    def _merge_feedback(self, state: WorkQueueState, event: Event, fact: FeedbackFact) -> None:
        item, stamp = self._item(state, fact.feedback_id, "feedback_needed", event)
        item.reach("acknowledged" if fact.acknowledged else "pending", stamp)
        item.state("urgency", stamp, fact.priority)
        item.state("therapist_id", stamp, fact.therapist_id)
        item.state("description", stamp, fact.description)
        for name, value in fact.details.items():
            item.state(f"{_DETAIL}{name}", stamp, value)

    @staticmethod
    def _merge_review_item(state: WorkQueueState, event: Event, fact: ReviewItemFact, now_us: int) -> None:
        """Applies a review item as of the start of its finding; a person's later statement wins."""
        item = state.items.get(fact.nudge_id)
        if item is None:
            item = state.items[fact.nudge_id] = Item(
                fact.nudge_id, (event.ts_us, ""), "review", event.ts_us, {}
            )
        if fact.revision <= item.revision:
            return
        state.touched_us = now_us
        state.changed.add(item.item_id)
        item.revision, item.withdrawn = fact.revision, fact.withdrawn
        if fact.withdrawn:
            return
        stamp = (event.ts_us, "")
        item.first, item.item_type = stamp, "review"
        item.newest_us = max(item.newest_us, event.ts_us)
        item.reach("pending", stamp)
        for name, value in (
            ("urgency", fact.urgency),
            ("description", fact.description),
            ("context", fact.context),
            ("site_id", event.site_id),
        ):
            known = item.statements.get(name)
            if known is None or not known[1] or stamp >= known[:2]:
                item.statements.pop(name, None)
                item.state(name, stamp, value)

    def project(self, state: WorkQueueState, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds the rows of changed items, and the emergencies among the alerts."""
        self.project_urgent(state, trigger, now_us, output)
        self._forget_old(state)
        visible = self.is_visible(state, now_us)
        changed = state.changed if visible == state.shown else state.items.keys()
        state.shown = visible
        for item in [state.items[key] for key in changed if key in state.items]:
            columns = self._columns(item, trigger.patient_id, visible)
            table_key = row_key(trigger.patient_id, item.item_id)
            row = state.next_version(item.item_id, table_key, columns, trigger, now_us)
            if row:
                output.rows.append((TABLE, row))
        state.changed = set()

    def project_urgent(self, state: WorkQueueState, trigger: Trigger, now_us: int, output: Output) -> None:
        """Adds emergencies: each depends on one item alone."""
        since_day = self.take_changed_since(state, trigger, now_us)
        if since_day != NEVER:
            findings = self._findings(state, since_day * DAY_US)
            output.add(self.reconcile(state, findings, since_day, trigger, now_us))
        # Emergencies found here are applied directly, without a round trip through the graph.
        for event in output.review_items:
            self._merge_review_item(state, event, cast(ReviewItemFact, event.fact), now_us)
        output.review_items.clear()

    @staticmethod
    def _findings(state: WorkQueueState, since_us: int) -> Iterator[Finding]:
        for item in state.items.values():
            if item.critical and item.critical[0] >= since_us:
                yield Finding(
                    rule="critical_alert",
                    occasion=item.item_id,
                    at_us=item.critical[0],
                    newest_us=item.critical[0],
                    exercise_id="",
                    session_id=None,
                    data={"alert_id": item.item_id, "alert_type": item.value("alert_type")},
                    triggered_by=item.critical[1],
                )

    @staticmethod
    def _forget_old(state: WorkQueueState) -> None:
        horizon_us = state.horizon_us
        old = [item for item in state.items.values() if item.newest_us < horizon_us]
        old.sort(key=lambda item: (item.is_open, item.newest_us))
        settled = bisect_left(old, True, key=lambda item: item.is_open)
        for item in old[: max(settled, len(old) - MAX_OPEN_ITEMS)]:
            del state.items[item.item_id]
            state.rows.pop(item.item_id, None)

    @staticmethod
    def _columns(item: Item[Any], patient_id: str, visible: bool) -> dict[str, Any]:
        rank, reached_us, _, status = item.status
        urgency: Priority = item.value("urgency") or "medium"
        deadline_us, resolved_us = item.value("sla_deadline"), item.value("resolved_at")
        if deadline_us is None:
            deadline_us = item.first[0] + DEADLINES_US[urgency]
        if resolved_us is None and rank == _FINAL_RANK:
            resolved_us = reached_us
        description = item.value("description")
        return {
            "item_id": item.item_id,
            "patient_id": patient_id,
            "therapist_id": item.value("therapist_id"),
            "site_id": item.value("site_id"),
            "item_type": item.item_type,
            "urgency": urgency,
            "priority": PRIORITIES[urgency],
            "description": item.value("alert_type") if description is None else description,
            "status": status,
            "created_at": to_rfc3339(item.first[0]),
            "sla_deadline": to_rfc3339(deadline_us),
            "resolved_at": None if resolved_us is None else to_rfc3339(resolved_us),
            "context": _context(item),
            "visible": visible and not item.withdrawn,
        }

"""The event: pydantic models of every kind, and the slim values that travel through the pipeline.

The models implement docs/contract.md, 2: a union discriminated by `kind`, strict JSON types, aliases,
defaults and ranges. A field is read from the first of its names that is not null, in the order of its
`AliasChoices`; a dotted name lies inside another field. The other names are not validated. Null means absent,
and a whole number is an integer however it is written.

`parse_event` turns one decoded JSON object into an `Event`. Its facts are slim values, because a pydantic
object costs ten times as much to move between steps.
"""

import hashlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple, cast, get_args

import orjson
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from transforms.message import Message
from transforms.times import MINUTE_US, to_micros, to_rfc3339
from transforms.values import Value

Kind = Literal["exercise_session", "rep_observation", "feedback", "alert", "consent"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FUTURE_TOLERANCE_US = 5 * MINUTE_US
EARLIEST_US = to_micros(datetime(2000, 1, 1, tzinfo=UTC))

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII)


_SECOND = slice(17, 19)


def _parse_timestamp(value: object) -> object:
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        try:
            moment = datetime.fromisoformat(value.upper())
            if moment.tzinfo is UTC:
                return moment
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, OverflowError):
            if value[_SECOND] == "60":
                return _leap_second(value)
    raise PydanticCustomError("rfc3339", "Input should be an RFC 3339 date and time")


def _leap_second(text: str) -> object:
    """The second after a leap second, because a `datetime` has no second 60."""
    moment = _parse_timestamp(f"{text[: _SECOND.start]}59{text[_SECOND.stop :]}")
    try:
        return cast(datetime, moment) + timedelta(seconds=1)
    except OverflowError:
        raise PydanticCustomError("rfc3339", "Input should be an RFC 3339 date and time") from None


def _whole(value: object) -> object:
    # JSON has a single type of number. 42.5 is left for the model to refuse.
    return int(value) if type(value) is float and value.is_integer() else value


Timestamp = Annotated[datetime, BeforeValidator(_parse_timestamp)]
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Score = Annotated[float, Field(ge=0, le=1)]
# Must be the last annotation of an `int`: pydantic runs the last validator first.
WHOLE = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=0), WHOLE]
PainLevel = Annotated[float, Field(ge=0, le=10)]


def _critical_if_urgent(value: object) -> object:
    return "critical" if value == "urgent" else value


def _pending_if_active(value: object) -> object:
    return "pending" if value == "active" else value


Priority = Literal["low", "medium", "high", "critical"]
Urgency = Annotated[
    Priority, BeforeValidator(_critical_if_urgent, json_schema_input_type=Priority | Literal["urgent"])
]
ItemStatus = Literal["pending", "acknowledged", "in_review", "resolved", "dismissed"]
Status = Annotated[
    ItemStatus, BeforeValidator(_pending_if_active, json_schema_input_type=ItemStatus | Literal["active"])
]
StatedConsent = Literal["granted", "revoked", "expired", "pending"]
SessionStatus = Literal["completed", "partial", "aborted", "started"]
IssueSeverity = Literal["minor", "moderate", "major"]
ISSUE_SEVERITIES = ("minor", "moderate", "major")


def _names(*names: str) -> AliasChoices:
    """A field's name and its aliases; a dotted one lies inside another field."""
    return AliasChoices(*(AliasPath(*name.split(".")) if "." in name else name for name in names))


def _dotted(choice: str | AliasPath) -> str:
    return choice if isinstance(choice, str) else ".".join(map(str, choice.path))


def _unless_stated(field: str) -> BeforeValidator:
    """Skips a field that only serves to calculate `field`, if `field` itself is stated."""

    def read(value: object, info: ValidationInfo) -> object:
        return value if info.data.get(field) is None else None

    return BeforeValidator(read)


def _describe_names(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Lists the aliases of a model's fields in its JSON schema."""
    for name, field in model.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices):
            others = ", ".join(f"`{_dotted(choice)}`" for choice in field.validation_alias.choices[1:])
            shown = schema["properties"][name]
            shown["description"] = " ".join([f"If absent: {others}.", *filter(None, [field.description])])


class _Model(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="ignore", allow_inf_nan=False, json_schema_extra=_describe_names
    )


class Meta(_Model):
    """The envelope's `meta`."""

    phi: bool | None = True
    consent_id: str | None = None
    site_id: str | None = None
    version: Annotated[int, WHOLE] | None = 1
    correlation_id: str | None = None


class FormIssue(_Model):
    """One flaw in a repetition's form."""

    type: str
    severity: IssueSeverity | None = None
    keypoint_deviation: float | None = None


def _issue_from_string(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


_Issue = Annotated[FormIssue, BeforeValidator(_issue_from_string, json_schema_input_type=str | FormIssue)]


class SessionBody(_Model):
    """Body of an `exercise_session`."""

    session_id: Identifier | None = None
    prescribed_exercise_id: str | None = None
    start_time: Timestamp | None = Field(None, validation_alias=_names("start_time", "started_at"))
    end_time: Timestamp | None = Field(None, validation_alias=_names("end_time", "ended_at"))
    completion_status: SessionStatus | None = Field(
        None, validation_alias=_names("completion_status", "status")
    )
    prescribed_reps: Count | None = Field(
        None,
        validation_alias=_names("prescribed_reps", "target_reps"),
        description="Else `prescription.sets` × `prescription.reps`.",
    )
    completed_reps: Count | None = Field(
        None, validation_alias=_names("completed_reps", "completion_summary.total_reps")
    )
    overall_quality: Score | None = Field(
        None,
        validation_alias=_names("overall_quality", "quality_score", "completion_summary.average_quality"),
    )
    duration_minutes: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="If absent: `completion_summary.session_duration`, in seconds; else from start to end.",
    )
    pain_level: PainLevel | None = None
    prescribed_sessions_per_week: Annotated[int, Field(ge=1, le=21), WHOLE] | None = None
    device_info: dict[str, Any] | None = None
    # Reps and minutes may be calculated from these.
    prescription_sets: SkipJsonSchema[Annotated[Count | None, _unless_stated("prescribed_reps")]] = Field(
        None, validation_alias=AliasPath("prescription", "sets")
    )
    prescription_reps: SkipJsonSchema[Annotated[Count | None, _unless_stated("prescribed_reps")]] = Field(
        None, validation_alias=AliasPath("prescription", "reps")
    )
    summary_seconds: SkipJsonSchema[
        Annotated[Annotated[float, Field(ge=0)] | None, _unless_stated("duration_minutes")]
    ] = Field(None, validation_alias=AliasPath("completion_summary", "session_duration"))


class RepBody(_Model):
    """Body of a `rep_observation`."""

    quality_score: Score = Field(
        validation_alias=_names("quality_score", "rep_quality", "form_score", "form_analysis.overall_score")
    )
    rep_number: Annotated[int, Field(ge=1), WHOLE] | None = None
    session_id: Identifier | None = None
    confidence_rating: Score | None = Field(None, validation_alias=_names("confidence_rating", "confidence"))
    duration_ms: Annotated[float, Field(gt=0)] | None = None
    range_of_motion: float | None = None
    peak_velocity: float | None = None
    form_issues: list[_Issue] | None = Field(
        None, validation_alias=_names("form_issues", "form_errors", "anomalies")
    )
    keypoints: list[Any] | None = None
    joint_angles: dict[str, Any] | None = None


class FeedbackBody(_Model):
    """Body of a `feedback`."""

    feedback_id: Identifier | None = None
    therapist_id: str | None = None
    feedback_type: str | None = None
    target_session_id: str | None = Field(None, validation_alias=_names("target_session_id", "session_id"))
    content: str | dict[str, Any] | None = Field(None, validation_alias=_names("content", "message"))
    priority: Priority | None = Field(None, validation_alias=_names("priority", "severity", "severity_level"))
    delivered_at: Timestamp | None = None
    acknowledged_at: Timestamp | None = None
    pain_level: PainLevel | None = Field(
        None, validation_alias=_names("pain_level", "content.pain_level", "message.pain_level")
    )


class AlertBody(_Model):
    """Body of an `alert`."""

    alert_id: Identifier | None = None
    alert_type: str
    urgency: Urgency | None = Field(None, validation_alias=_names("urgency", "severity", "priority"))
    trigger_criteria: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    assigned_to: str | None = None
    resolution_status: Status | None = Field(None, validation_alias=_names("resolution_status", "status"))
    description: str | None = Field(None, validation_alias=_names("description", "title", "message"))
    pain_level: PainLevel | None = None
    sla_deadline: Timestamp | None = None
    resolved_at: Timestamp | None = None


class ConsentBody(_Model):
    """Body of a `consent`."""

    consent_id: Identifier | None = None
    consent_type: str | None = "data_collection"
    granted: bool | None = None
    status: StatedConsent | None = None
    effective_from: Timestamp | None = None
    expires_at: Timestamp | None = Field(None, validation_alias=_names("expires_at", "expiry"))
    scope: dict[str, Any] | list[Any] | None = None

    @model_validator(mode="after")
    def _states_a_decision(self) -> "ConsentBody":
        if self.granted is None and self.status is None:
            raise PydanticCustomError("no_decision", "granted or status is required")
        if self.granted is not None and self.status and self.granted != (self.status == "granted"):
            raise PydanticCustomError("contradiction", "granted and status should not contradict each other")
        return self


class _Envelope(_Model):
    event_id: Identifier | None = None
    ts: Timestamp | None = Field(None, validation_alias=_names("ts", "timestamp"))
    subject_id: Identifier = Field(validation_alias=_names("subject_id", "patient_id"))
    exercise_id: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        None, validation_alias=_names("exercise_id", "body.exercise_id", "body.exercise_type")
    )
    meta: Meta | None = None


class ExerciseSession(_Envelope):
    """An exercise session that began or ended."""

    kind: Literal["exercise_session"]
    body: SessionBody


class RepObservation(_Envelope):
    """One scored repetition."""

    kind: Literal["rep_observation"]
    body: RepBody


class Feedback(_Envelope):
    """Feedback from or for a therapist."""

    kind: Literal["feedback"]
    body: FeedbackBody


class Alert(_Envelope):
    """An alert raised outside the pipeline."""

    kind: Literal["alert"]
    body: AlertBody


class Consent(_Envelope):
    """A patient's decision about the collection of data."""

    kind: Literal["consent"]
    body: ConsentBody


EventModel = Annotated[
    ExerciseSession | RepObservation | Feedback | Alert | Consent,
    Field(discriminator="kind"),
]


class SessionFact(Value, frozen=True, tag="session"):
    """What the projections need of a session event; null where the event states nothing."""

    session_id: str
    status: SessionStatus
    start_us: int | None
    quality: float | None
    duration_minutes: float | None
    pain_level: float | None
    sessions_per_week: int | None


class RepFact(Value, frozen=True, tag="rep"):
    """What the projections need of a rep; `issues` are pairs of type and severity (or null)."""

    score: float
    session_id: str | None
    issues: tuple[tuple[str, IssueSeverity | None], ...]


class FeedbackFact(Value, frozen=True, tag="feedback"):
    """What the projections need of a feedback event; null where the event states nothing.

    `details` are the stated fields for the item's context, by name.
    """

    feedback_id: str
    therapist_id: str | None
    priority: Priority | None
    description: str | None
    details: dict[str, Any]
    acknowledged: bool
    pain_level: float | None


class AlertFact(Value, frozen=True, tag="alert"):
    """What the projections need of an alert event; null where the event states nothing.

    `trigger_criteria` and `context` are encoded JSON objects.
    """

    alert_id: str
    alert_type: str
    urgency: Priority | None
    status: ItemStatus | None
    therapist_id: str | None
    description: str | None
    trigger_criteria: str | None
    context: str | None
    sla_deadline_us: int | None
    resolved_at_us: int | None
    # Last and with a default, because events that release 0.1.0 encoded lack it.
    pain_level: float | None = None


class ConsentFact(Value, frozen=True, tag="consent"):
    """A consent, in force from `effective_us` until `expires_us` (null: open); docs/contract.md, 2.9."""

    consent_type: str
    status: StatedConsent
    effective_us: int
    expires_us: int | None


class ReviewItemFact(Value, frozen=True, tag="review"):
    """A review item on its way into the patient's work queue, or out of it again (`withdrawn`).

    Among several with one `nudge_id`, the one with the highest `revision` counts.
    """

    nudge_id: str
    revision: int
    withdrawn: bool
    urgency: str
    description: str
    context: str


Fact = SessionFact | RepFact | FeedbackFact | AlertFact | ConsentFact | ReviewItemFact

# The kind of the policy's review items; no event from outside has it.
REVIEW: Final = "review"


class Event(Value, frozen=True):
    """A valid event.

    `ts_us` is the event's time in microseconds since the epoch; `exercise_id` is '' if absent; `message` is
    the message that it arrived in, with only this event as its payload.
    """

    event_id: str
    kind: str
    ts_us: int
    patient_id: str
    exercise_id: str
    site_id: str | None
    fact: Fact
    message: Message


class FieldError(NamedTuple):
    """A field's dotted path from the envelope, and the rule that it breaks; never its value."""

    field: str
    message: str


class InvalidEventError(Exception):
    """An object that is not a valid event; `reason` is one of `transforms.reasons.REASONS`."""

    def __init__(self, reason: str, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.reason = reason
        self.errors = errors


def content_id(content: dict[str, Any]) -> str:
    """The id of an event that states none: a hash of its content, whatever the order of its keys."""
    return hashlib.blake2b(_canonical_json(content), digest_size=16).hexdigest()


def parse_event(content: dict[str, Any], message: Message, now_us: int) -> Event:
    """The event in a decoded JSON object. Raises `InvalidEventError`.

    `now_us` is the present in microseconds since the epoch: later times are refused, with some tolerance.
    """
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in _FACTS:
        reason = "unknown_kind" if isinstance(kind, str) else "invalid_schema"
        raise InvalidEventError(reason, [FieldError("kind", f"Input should be one of {', '.join(KINDS)}")])
    stated = _stated(content)
    try:
        model = _VALIDATE[kind](stated)
    except ValidationError as error:
        raise InvalidEventError("invalid_schema", _field_errors(error)) from None
    ts_us = message.first_publish_us if model.ts is None else to_micros(model.ts)
    event_id = model.event_id or content_id(content)
    latest_us = now_us + FUTURE_TOLERANCE_US
    if not EARLIEST_US <= ts_us <= latest_us or kind == "exercise_session":
        _check_times(model, stated, ts_us, latest_us)
    return Event(
        event_id,
        kind,
        ts_us,
        model.subject_id,
        model.exercise_id or "",
        model.meta.site_id if model.meta else None,
        _FACTS[kind](event_id, ts_us, model.body),
        message,
    )


def _stated(content: dict[str, Any]) -> dict[str, Any]:
    """The envelope and its body without nulls, so that an alias is read if a field is null.

    Deeper nulls hide no alias, and objects that are stored unchanged (`context`, `device_info`) keep theirs.
    """
    body = content.get("body")
    if type(body) is dict and None in body.values():
        content = content | {"body": _without_nulls(body)}
    return _without_nulls(content) if None in content.values() else content


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _field_errors(error: ValidationError) -> list[FieldError]:
    details = error.errors(include_url=False, include_context=False)
    return [FieldError(_field_path(detail), _rule(detail)) for detail in details]


def _field_path(detail: ErrorDetails) -> str:
    loc = [part for part in detail["loc"] if part not in _NOT_A_FIELD]
    return ".".join(str(part) for part in loc) or "event"


def _rule(detail: ErrorDetails) -> str:
    return "Field required" if detail["input"] is None else detail["msg"]


def _check_times(model: _Envelope, stated: dict[str, Any], ts_us: int, latest_us: int) -> None:
    times = [(_written(stated, "ts", "timestamp"), ts_us)]
    if isinstance(model, ExerciseSession):
        # A session belongs to the day of its start, so an impossible start would put it into the wrong week.
        start_us, end_us = _micros(model.body.start_time), _micros(model.body.end_time)
        start = f"body.{_written(stated['body'], 'start_time', 'started_at')}"
        end = f"body.{_written(stated['body'], 'end_time', 'ended_at')}"
        if start_us is not None and end_us is not None and end_us < start_us:
            problem = FieldError(end, f"Input should not be before {start}")
            raise InvalidEventError("invalid_schema", [problem])
        times += [
            (field, time_us) for field, time_us in ((start, start_us), (end, end_us)) if time_us is not None
        ]
    errors = [
        FieldError(field, "Input should be from 2000-01-01 to 5 minutes from now")
        for field, time_us in times
        if not EARLIEST_US <= time_us <= latest_us
    ]
    if errors:
        raise InvalidEventError("timestamp_out_of_range", errors)


def _written(fields: dict[str, Any], name: str, alias: str) -> str:
    """The name under which the sender stated a field."""
    return alias if name not in fields and alias in fields else name


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _session_fact(event_id: str, ts_us: int, body: SessionBody) -> SessionFact:
    duration = _duration_minutes(body)
    return SessionFact(
        session_id=body.session_id or event_id,
        status=_session_status(body, duration),
        start_us=_micros(body.start_time),
        quality=body.overall_quality,
        duration_minutes=duration,
        pain_level=body.pain_level,
        sessions_per_week=body.prescribed_sessions_per_week,
    )


def _duration_minutes(body: SessionBody) -> float | None:
    if body.duration_minutes is not None:
        return body.duration_minutes
    if body.summary_seconds is not None:
        return body.summary_seconds / 60
    if body.start_time is None or body.end_time is None:
        return None
    return (body.end_time - body.start_time).total_seconds() / 60


def _prescribed_reps(body: SessionBody) -> int | None:
    if (
        body.prescribed_reps is None
        and body.prescription_sets is not None
        and body.prescription_reps is not None
    ):
        return body.prescription_sets * body.prescription_reps
    return body.prescribed_reps


def _session_status(body: SessionBody, duration: float | None) -> SessionStatus:
    if body.completion_status is not None:
        return body.completion_status
    prescribed, completed = _prescribed_reps(body), body.completed_reps
    if prescribed is not None and completed is not None:
        if completed >= prescribed > 0:
            return "completed"
        if 0 < completed < prescribed:
            return "partial"
    return "started" if body.end_time is None and duration is None else "completed"


def _rep_fact(_event_id: str, _ts_us: int, body: RepBody) -> RepFact:
    issues = tuple((issue.type, issue.severity) for issue in body.form_issues or ())
    return RepFact(body.quality_score, body.session_id, issues)


def _feedback_fact(event_id: str, _ts_us: int, body: FeedbackBody) -> FeedbackFact:
    is_text = isinstance(body.content, str)
    details = {
        "feedback_type": body.feedback_type,
        "target_session_id": body.target_session_id,
        "content": None if is_text else _encoded(cast("dict[str, Any] | None", body.content)),
        "pain_level": body.pain_level,
        "delivered_at": None if body.delivered_at is None else to_rfc3339(to_micros(body.delivered_at)),
    }
    return FeedbackFact(
        feedback_id=body.feedback_id or event_id,
        therapist_id=body.therapist_id,
        priority=body.priority,
        description=cast("str | None", body.content) if is_text else None,
        details={name: value for name, value in details.items() if value is not None},
        acknowledged=body.acknowledged_at is not None,
        pain_level=body.pain_level,
    )


def _alert_fact(event_id: str, _ts_us: int, body: AlertBody) -> AlertFact:
    return AlertFact(
        alert_id=body.alert_id or event_id,
        alert_type=body.alert_type,
        urgency=body.urgency,
        status=body.resolution_status,
        therapist_id=body.assigned_to,
        description=body.description,
        trigger_criteria=_encoded(body.trigger_criteria),
        context=_encoded(body.context),
        sla_deadline_us=_micros(body.sla_deadline),
        resolved_at_us=_micros(body.resolved_at),
        pain_level=body.pain_level,
    )


def _consent_fact(_event_id: str, ts_us: int, body: ConsentBody) -> ConsentFact:
    effective_us = _micros(body.effective_from)
    return ConsentFact(
        # An empty type means the default one.
        consent_type=body.consent_type or "data_collection",
        status=body.status or ("granted" if body.granted else "revoked"),
        effective_us=ts_us if effective_us is None else effective_us,
        expires_us=_micros(body.expires_at),
    )


def _encoded(content: dict[str, Any] | None) -> str | None:
    return None if content is None else _canonical_json(content).decode()


def _canonical_json(content: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Only depth can fail: orjson reads 1,024 levels but writes 254.
        raise InvalidEventError(
            "invalid_schema", [FieldError("event", "Input should not be nested so deeply")]
        ) from None


# One validator per kind: the union's discriminator would take longer than the validation itself.
_VALIDATE: dict[str, Callable[[object], Any]] = {
    "exercise_session": ExerciseSession.__pydantic_validator__.validate_python,
    "rep_observation": RepObservation.__pydantic_validator__.validate_python,
    "feedback": Feedback.__pydantic_validator__.validate_python,
    "alert": Alert.__pydantic_validator__.validate_python,
    "consent": Consent.__pydantic_validator__.validate_python,
}
_FACTS: dict[str, Callable[[str, int, Any], Fact]] = {
    "exercise_session": _session_fact,
    "rep_observation": _rep_fact,
    "feedback": _feedback_fact,
    "alert": _alert_fact,
    "consent": _consent_fact,
}
_NOT_A_FIELD = {*KINDS, "str", "dict[str,any]", "list[any]"}

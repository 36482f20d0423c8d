"""The policy's thresholds, and how a configuration file states them."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Thresholds(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class MissedSessions(_Thresholds):
    """A nudge after a gap of more than `gap_days`; an alert after `silent_days` full days of silence."""

    gap_days: int = Field(3, ge=1, le=27)
    silent_days: int = Field(2, ge=1, le=27)


class ExtendedAbsence(_Thresholds):
    """An alert after a gap of more than `days`, or as many full days of silence."""

    days: int = Field(7, ge=1, le=27)


class ShortSession(_Thresholds):
    """A nudge for a completed session shorter than `minutes`."""

    minutes: float = Field(10, ge=0)


class AdherenceLevel(_Thresholds):
    """A threshold on a rolling average, applied from `after_days` days after the first session."""

    percent: float = Field(ge=0, le=100)
    after_days: int = Field(ge=0, le=365)
    repeat_days: int = Field(ge=1, le=28)


class SessionQuality(_Thresholds):
    """Scores below which a session counts as poor, or earns a reminder."""

    poor: float = Field(0.50, ge=0, le=1)
    reminder: float = Field(0.70, ge=0, le=1)


class QualityDegradation(_Thresholds):
    """A 7-day average below `average`, or `critical_percent` or more critical reps, of `min_reps` or more."""

    average: float = Field(0.70, ge=0, le=1)
    critical_percent: float = Field(30, ge=0, le=100)
    min_reps: int = Field(20, ge=1)
    repeat_days: int = Field(7, ge=1, le=28)


class QualityImprovement(_Thresholds):
    """A 7-day average above `average` on every day with reps, for `days` days."""

    average: float = Field(0.85, ge=0, le=1)
    days: int = Field(14, ge=1, le=21)
    repeat_days: int = Field(14, ge=1, le=28)


class RepFeedback(_Thresholds):
    """Real-time feedback on reps: the score below which it is given, and the pause after it."""

    quality: float = Field(0.60, ge=0, le=1)
    repeat_seconds: float = Field(30, ge=0, le=3600)


class Pain(_Thresholds):
    """Pain levels at which a report becomes an alert, or an emergency."""

    alert: float = Field(4, ge=0, le=10)
    emergency: float = Field(7, ge=0, le=10)


class Policy(_Thresholds):
    """Every threshold of the policy; a configuration file overrides some of them."""

    missed_sessions: MissedSessions = MissedSessions()
    extended_absence: ExtendedAbsence = ExtendedAbsence()
    short_session: ShortSession = ShortSession()
    low_weekly_adherence: AdherenceLevel = AdherenceLevel(percent=50, after_days=7, repeat_days=7)
    adherence_excellence: AdherenceLevel = AdherenceLevel(percent=90, after_days=28, repeat_days=28)
    session_quality: SessionQuality = SessionQuality()
    quality_degradation: QualityDegradation = QualityDegradation()
    quality_improvement: QualityImprovement = QualityImprovement()
    rep_feedback: RepFeedback = RepFeedback()
    pain: Pain = Pain()


def policy_from(content: object) -> Policy:
    """The policy in a decoded configuration file. Raises ValueError with one sentence."""
    try:
        return Policy.model_validate({} if content is None else content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{where}: {first['msg']}") from None

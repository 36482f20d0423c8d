"""The status as the API returns it and the OpenAPI document describes it."""

from typing import Any, Literal

from pydantic import BaseModel, Field

type Health = Literal["healthy", "degraded", "down"]


class JobStatus(BaseModel):
    """The observed job."""

    name: str
    id: str = Field(description="Dataflow's job id, or the process of a job on this machine.")
    state: str
    started_at: str | None
    system_lag_seconds: float | None = Field(
        description="On Dataflow: the longest that an element has waited."
    )
    watermark_age_seconds: float | None = Field(description="On Dataflow: the age of the watermark.")
    observed_at: str = Field(description="The time of this observation.")


class Producer(BaseModel):
    """One subscription that the job reads."""

    subscription: str
    reachable: bool | None = Field(description="null: unknown.")
    backlog: int | None = Field(description="Unacknowledged messages; `measured` says which.")
    oldest_unacknowledged_seconds: float | None
    measured: str = Field(description="What the backlog counts, and how late it may be.")


class Count(BaseModel):
    """A counter since the job began, and how fast it grew over the last minute."""

    total: int
    per_second: float | None = Field(description="null: not observed for long enough.")


class Distribution(BaseModel):
    """A distribution since the job began."""

    count: int
    mean: float | None


class Latency(BaseModel):
    """Percentiles of the last minute; null without values."""

    p50: float | None
    p95: float | None


class Batches(BaseModel):
    """Batches that BigQuery has acknowledged since the job began."""

    count: int
    mean_size: float | None


class Metrics(BaseModel):
    """The job's metrics, by name."""

    counters: dict[str, Count]
    distributions: dict[str, Distribution]
    event_to_write_ms: Latency = Field(description="From publish to acknowledged by BigQuery, each row.")
    batches: Batches
    events_per_second: float | None = Field(description="Events that got an outcome, over the last minute.")


class Status(BaseModel):
    """The pipeline's status."""

    status: Health
    reasons: list[str] = Field(description="Why it is not healthy, one sentence each.")
    job: JobStatus | None
    producers: dict[str, Producer] = Field(description="By role: primary, secondary.")
    metrics: Metrics
    config: dict[str, Any] = Field(description="The options that the job runs with.")
    target_throughput: str
    achieved_throughput: str = Field(description="Over the last minute; limited by what arrives.")

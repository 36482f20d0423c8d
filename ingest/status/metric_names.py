"""The names of all metrics that a job may report: one without a value yet is shown as 0."""

from typing import NamedTuple

from pipeline.reporting.metrics import BROADWAY, LATENCY, POLICY
from pipeline.tables import TABLES
from transforms.events import KINDS
from transforms.policy.rules import RULES
from transforms.reasons import REASONS


class Family(NamedTuple):
    """Counters or distributions of one name: one for each value of the label, or one without a label."""

    name: str
    label: str | None = None
    values: tuple[str, ...] = ()

    @property
    def members(self) -> dict[str, str]:
        """Full names, by label value."""
        return {value: f"{self.name}.{value}" for value in self.values} if self.label else {"": self.name}


def _types(kind: str) -> tuple[str, ...]:
    return tuple(sorted({rule.type for rule in RULES.values() if rule.kind == kind}))


COUNTERS = (
    Family(BROADWAY + "event.arrived"),
    Family(BROADWAY + "event.processed", "kind", KINDS),
    Family(BROADWAY + "event.duplicate"),
    Family(BROADWAY + "event.withheld"),
    Family(BROADWAY + "event.too_late"),
    Family(BROADWAY + "event.unknown"),
    Family(BROADWAY + "event.dead_letter", "reason", REASONS),
    Family(BROADWAY + "row.projected", "table", tuple(TABLES)),
    Family(BROADWAY + "batch.processed", "table", tuple(TABLES)),
    *(
        Family(f"{POLICY}{kind}.generated", "type", _types(kind))
        for kind in ("nudge", "alert", "feedback", "emergency")
    ),
)
DISTRIBUTIONS = (
    Family(BROADWAY + "batch.size", "table", tuple(TABLES)),
    Family(BROADWAY + "write_ms"),
    Family(BROADWAY + "event_to_write_ms"),
)


def names(families: tuple[Family, ...]) -> list[str]:
    """The full names of all members."""
    return [name for family in families for name in family.members.values()]


def is_bucket(name: str) -> bool:
    """Whether a counter is a bucket, kept only for percentiles."""
    return name.startswith(LATENCY)

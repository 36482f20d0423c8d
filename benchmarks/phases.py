"""What the load benchmark asks of the API, and what it gets."""

from typing import NamedTuple

# A step of the ramp holds while this holds.
MAX_P95_MS = 200.0


class Phase(NamedTuple):
    """So many events a second for so long: in batches, and one by one."""

    name: str
    seconds: float
    in_batches: float
    single: float = 0.0


SCENARIOS = {
    "sustained": [Phase("batches of 50", 60, 1000), Phase("single", 60, 0, 300)],
    "burst": [
        Phase("100 before", 20, 50, 50),
        Phase("2,000", 20, 1950, 50),
        Phase("100 after", 20, 50, 50),
    ],
    # Until one does not hold.
    "capacity": [Phase(f"{rate:,}", 15, rate - 50, 50) for rate in range(500, 10_001, 500)],
}


class Figures(NamedTuple):
    """What came of a phase; latencies in milliseconds."""

    seconds: float
    requests: int
    accepted: int
    errors: int
    p50: float
    p95: float
    p99: float

    def holds(self, phase: Phase) -> bool:
        """Whether the API kept up."""
        asked = (phase.in_batches + phase.single) * phase.seconds
        return not self.errors and self.p95 < MAX_P95_MS and self.accepted > 0.95 * asked

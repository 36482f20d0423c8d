"""The scenarios of the load benchmark, and the figures of a phase."""

from typing import NamedTuple

# The API keeps up with a rate while its p95 stays below this.
MAX_P95_MS = 200.0


class Phase(NamedTuple):
    """A load in events per second, in batches and as single events, for some seconds."""

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
    # Stops at the first rate that the API cannot keep up with.
    "capacity": [Phase(f"{rate:,}", 15, rate - 50, 50) for rate in range(500, 10_001, 500)],
}


class Figures(NamedTuple):
    """The results of a phase; latencies in milliseconds."""

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

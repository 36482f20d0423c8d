"""Why something becomes a dead letter: a closed list, in a module that loads nothing else."""

REASONS = (
    "malformed_json",
    "not_an_event",
    "unknown_kind",
    "invalid_schema",
    "timestamp_out_of_range",
    "too_large",
    "projection_failed",
    "write_rejected",
)

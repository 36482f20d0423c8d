"""Why something becomes a dead letter: a closed list, for those who only count."""

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

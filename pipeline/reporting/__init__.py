"""What a job tells of itself: metrics, progress, logs."""

"""What a job reports: metrics, progress, the account of a bounded run, logs."""

"""Sources: where the job reads messages."""

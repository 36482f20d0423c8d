"""The HTTP API: it accepts events and reports the pipeline's status."""

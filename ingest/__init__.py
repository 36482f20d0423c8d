"""The HTTP API: events in, over HTTP, and how the pipeline is."""

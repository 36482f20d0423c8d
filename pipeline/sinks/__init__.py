"""Sinks: where the job writes rows and nudges."""

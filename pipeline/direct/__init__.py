"""Streaming on the DirectRunner."""

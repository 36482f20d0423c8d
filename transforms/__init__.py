"""The domain: events, validation, projections, policy, batching. No I/O, no clients, no options."""

"""The domain: events, validation, projections, policy and their Beam steps. No I/O, clients or options."""

"""The projections: pure rules over a patient's state."""

"""The steps of the graph: Beam's side of the rules."""

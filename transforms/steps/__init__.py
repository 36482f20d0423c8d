"""The Beam steps around the rules. No other package in `transforms` imports Beam."""

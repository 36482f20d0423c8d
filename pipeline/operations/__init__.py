"""The logic behind the operator's commands."""

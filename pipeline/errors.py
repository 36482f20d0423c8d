"""Errors whose remedy is the operator's."""


class OperatorError(Exception):
    """Something outside the program is not as it must be; the message is one sentence about it."""

"""Errors whose remedy is the operator's."""

from google.api_core.exceptions import Forbidden, NotFound


class OperatorError(Exception):
    """Something outside the program is not as it must be; the message is one sentence about it."""


def refusal(error: Exception) -> str:
    """What an error of Google's says, without a word that may come from what was sent."""
    # These name a resource; other messages may quote a value.
    if isinstance(error, (Forbidden, NotFound)):
        return str(error).partition("\n")[0]
    return type(error).__name__

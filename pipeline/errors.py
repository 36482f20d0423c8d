"""Errors whose remedy is the operator's."""

from google.api_core.exceptions import Forbidden, NotFound


class OptionsError(ValueError):
    """Options that do not work, alone or together; the message is one sentence for the operator."""


class OperatorError(Exception):
    """Something outside the program is not as it must be; the message is one sentence about it."""


class InputFileError(OperatorError):
    """An input file cannot be read to its end; the sentence names it."""


def refusal(error: Exception) -> str:
    """What an error of Google's says, without a word that may come from what was sent."""
    # These name a resource; other messages may quote a value.
    if isinstance(error, (Forbidden, NotFound)):
        return str(error).partition("\n")[0]
    return type(error).__name__

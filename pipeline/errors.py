"""Errors that the operator can fix."""

from google.api_core.exceptions import Forbidden, NotFound


class OptionsError(ValueError):
    """Invalid or contradictory options; the message is one sentence for the operator."""


class OperatorError(Exception):
    """Something outside the program is wrong; the message is one sentence that says what."""


class InputFileError(OperatorError):
    """An input file cannot be read to its end; the message names it."""


def refusal(error: Exception) -> str:
    """Describes an error from a Google client, without anything that may come from a payload."""
    # These messages name a resource; others may quote a value.
    if isinstance(error, (Forbidden, NotFound)):
        return str(error).partition("\n")[0]
    return type(error).__name__

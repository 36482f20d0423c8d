"""Dead letters: input that could not be used, kept so that nothing is lost."""

import base64
import hashlib
from typing import NamedTuple

import orjson

from transforms.message import Message
from transforms.reasons import REASONS as REASONS
from transforms.rows import Row
from transforms.times import to_rfc3339

PROJECTION_FAILED = "projection_failed"
WRITE_REJECTED = "write_rejected"
SCHEMA_VERSION = 1
# A replay sets this attribute to the number of earlier attempts.
ATTEMPTS_ATTRIBUTE = "attempts"
_MOST_ATTEMPTS = 1_000_000
# A replay sets this attribute to the reason of the dead letter.
REPLAY_ATTRIBUTE = "replay_of"


def failed_in_projection(message: Message) -> bool:
    """Whether the message replays an event on which a projection failed."""
    return message.attributes.get(REPLAY_ATTRIBUTE) == PROJECTION_FAILED


class DeadLetter(NamedTuple):
    """An input that could not be used.

    `reason` is one of `REASONS` and `stage` the step that refused it. `error` says which field broke which
    rule, and never quotes a value. `message.payload` has the bytes that arrived, unchanged.
    """

    reason: str
    stage: str
    error: str
    message: Message
    event_id: str | None = None
    event_kind: str | None = None


def dead_letter_row(letter: DeadLetter, failed_us: int, job_name: str) -> Row:
    """The row of `dead_letters` for a letter that failed at `failed_us` (microseconds since the epoch)."""
    message = letter.message
    letter_id = hashlib.blake2b(
        message.payload, digest_size=16, person=letter.reason[:16].encode()
    ).hexdigest()
    columns = {
        "dead_letter_id": letter_id,
        "reason": letter.reason,
        "stage": letter.stage,
        "error_message": letter.error,
        "payload": base64.b64encode(message.payload).decode(),
        "attributes": orjson.dumps(message.attributes).decode(),
        "subscription": message.subscription,
        "message_id": message.message_id,
        "event_id": letter.event_id,
        "event_kind": letter.event_kind,
        "publish_time": to_rfc3339(message.first_publish_us),
        "failed_at": to_rfc3339(failed_us),
        "attempts": _attempts(message.attributes),
        "job_name": job_name,
        "schema_version": SCHEMA_VERSION,
    }
    return Row(letter_id, failed_us, message.publish_us, orjson.dumps(columns))


def _attempts(attributes: dict[str, str]) -> int:
    earlier = attributes.get(ATTEMPTS_ATTRIBUTE, "")
    # Limited, because a publisher may set any number, which JSON and BigQuery may not hold.
    return 1 + (min(int(earlier), _MOST_ATTEMPTS) if earlier.isascii() and earlier.isdecimal() else 0)

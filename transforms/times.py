"""Times as microseconds since the epoch (UTC) and days as numbers since the epoch."""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

MICROS = 1_000_000
MINUTE_US = 60 * MICROS
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = _EPOCH.replace(tzinfo=None)
_EPOCH_DAY = date(1970, 1, 1).toordinal()


def to_micros(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime; exact, unlike `timestamp()`."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * MICROS + since.microseconds


def to_rfc3339(micros: int) -> str:
    """RFC 3339 in UTC with a `Z`; with six decimals only if there is a fraction of a second."""
    seconds, fraction = divmod(micros, MICROS)
    return f"{_iso_second(seconds)}.{fraction:06}Z" if fraction else f"{_iso_second(seconds)}Z"


@lru_cache(maxsize=1024)
def _iso_second(seconds: int) -> str:
    return (_NAIVE_EPOCH + timedelta(0, seconds)).isoformat()


def day_of(micros: int) -> int:
    """The UTC day, as days since the epoch."""
    return micros // DAY_US


def week_start_of(day: int) -> int:
    """The Monday of the day's week, as days since the epoch (day 0 was a Thursday)."""
    return day - (day + 3) % 7


@lru_cache(maxsize=1024)
def iso_date(day: int) -> str:
    """YYYY-MM-DD of a day since the epoch."""
    return date.fromordinal(_EPOCH_DAY + day).isoformat()

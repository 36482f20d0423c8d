"""The job as a process, and what goes in and comes out: for tests of the whole stream."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from pipeline.cloud.clients import bigquery, publisher, subscriber
from pipeline.operations.provisioning import Resources
from tests.support.oracle import KEYS, Arrival, Options, assert_rows_equal, expected
from tests.support.strategies import WINDOW_END

# Long: it only says that something comes at all.
WAIT_SECONDS = 120.0

# Every patient's id and every secret text of these tests has one of these in it; no log may.
PATIENT = "nightingale"
SECRET = "quillfeather"

PROCESSED = "rehab_tracking.broadway.event.processed."
DEAD_LETTER = "rehab_tracking.broadway.event.dead_letter."
_OUTCOMES = ("duplicate", "withheld", "too_late")
_TABLES = ("adherence", "quality", "work_queue", "consents", "dead_letters")
_TIMES = {
    "start_time",
    "started_at",
    "ended_at",
    "expiry",
    "end_time",
    "effective_from",
    "expires_at",
    "sla_deadline",
    "resolved_at",
    "delivered_at",
    "acknowledged_at",
}


def command(resources: Resources) -> list[str]:
    """The job's command line over a test's resources."""
    return [
        *(sys.executable, "-m", "pipeline.main"),
        f"--primary_subscription={resources.primary_subscription}",
        f"--secondary_subscription={resources.secondary_subscription}",
        f"--nudge_topic={resources.nudge_topic}",
        f"--dataset={resources.dataset}",
    ]


class Job:
    """`python -m pipeline.main` over a test's resources; ends with `stop` or `kill`."""

    def __init__(self, resources: Resources, folder: Path, *more: str) -> None:
        """Starts it; `more` are further options, its output goes to `folder`."""
        self.log = folder / "job.log"
        self.metrics_path = folder / "metrics.json"
        folder.mkdir()
        arguments = [*command(resources), f"--metrics_file={self.metrics_path}", *more]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def send(self, signum: signal.Signals) -> int:
        """Sends a signal; gives the exit status."""
        self.process.send_signal(signum)
        return self.process.wait(WAIT_SECONDS)

    def kill(self) -> None:
        """Ends it without a chance to do anything about it."""
        self.send(signal.SIGKILL)

    def metrics(self) -> dict[str, Any]:
        """What it has written about itself so far."""
        if not self.metrics_path.exists():
            return {"counters": {}, "distributions": {}}
        content: dict[str, Any] = json.loads(self.metrics_path.read_bytes())
        return content

    def counter(self, name: str) -> int:
        """A counter's value, by its name within rehab_tracking.broadway."""
        return int(self.metrics()["counters"].get(f"rehab_tracking.broadway.{name}", 0))

    def eventually(self, check: Callable[[], None]) -> None:
        """Tries until the check no longer fails; the job has to stay alive meanwhile."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            assert self.process.poll() is None, f"the job has ended:\n{self.log.read_text()[-3000:]}"
            began = time.monotonic()
            try:
                check()
            except AssertionError:
                if began > deadline:
                    raise
                # As long again as the check took: queries without a pause would slow down the job itself.
                time.sleep(max(0.1, time.monotonic() - began))
            else:
                return

    def until_settled(self, events: int) -> None:
        """Waits until it has accounted for so many events, and has written all rows that it has made."""

        def check() -> None:
            metrics = self.metrics()
            assert accounted_for(metrics["counters"]) == events
            for table in _TABLES:
                made = metrics["counters"].get(f"rehab_tracking.broadway.row.projected.{table}", 0)
                batches = metrics["distributions"].get(f"rehab_tracking.broadway.batch.size.{table}")
                assert (batches["sum"] if batches else 0) == made

        self.eventually(check)


def accounted_for(counters: dict[str, int]) -> int:
    """How many events have come to one of their ends, as the job counts them."""
    outcomes = [f"rehab_tracking.broadway.event.{outcome}" for outcome in _OUTCOMES]
    return sum(
        value
        for name, value in counters.items()
        if name in outcomes
        or name.startswith(PROCESSED)
        or (name.startswith(DEAD_LETTER) and not name.endswith("write_rejected"))
    )


def publish(topic: str, *payloads: bytes, **attributes: str) -> None:
    """Publishes, and waits for the confirmation."""
    sent: dict[str, Any] = dict(attributes)
    for future in [publisher().publish(topic, payload, **sent) for payload in payloads]:
        future.result(WAIT_SECONDS)


def encoded(arrivals: Iterable[Arrival]) -> list[bytes]:
    """The arrivals as messages of one event each."""
    return [orjson.dumps(arrival.envelope) for arrival in arrivals]


def event(kind: str, event_id: str, patient: str = PATIENT, **more: Any) -> Arrival:
    """An event of just now; `more` goes into its body, but for `ts` and `exercise_id`."""
    now = datetime.now(UTC)
    envelope: dict[str, Any] = {
        "event_id": event_id,
        "kind": kind,
        "ts": more.pop("ts", now.isoformat()),
        "subject_id": patient,
    }
    if "exercise_id" in more:
        envelope["exercise_id"] = more.pop("exercise_id")
    return Arrival({**envelope, "body": more}, int(now.timestamp() * 1_000_000))


def sessions(count: int, patient: str = PATIENT) -> list[Arrival]:
    """So many completed sessions of today, each with an id of its own."""
    return [
        event("exercise_session", f"session-{patient}-{number}", patient, duration_minutes=20)
        for number in range(count)
    ]


def recent(arrivals: Iterable[Arrival]) -> list[Arrival]:
    """The arrivals moved in time, so that their 28 days end just now, and with patients that no log names."""
    # Not in whole quarters of an hour: so a consent's time, which is in those, does not come during a test.
    moved_by = datetime.now(UTC) - timedelta(minutes=67) - WINDOW_END
    return [_moved(arrival, moved_by) for arrival in arrivals]


def _moved(arrival: Arrival, by: timedelta) -> Arrival:
    envelope = dict(arrival.envelope)
    for name in {"ts", "timestamp"} & envelope.keys():
        envelope[name] = _later(envelope[name], by)
    for name in {"subject_id", "patient_id"} & {
        name for name, value in envelope.items() if value is not None
    }:
        envelope[name] = f"{PATIENT}-{envelope[name]}"
    envelope["body"] = {
        name: _later(value, by) if name in _TIMES else value for name, value in envelope["body"].items()
    }
    return Arrival(envelope, arrival.publish_us + by // timedelta(microseconds=1))


def _later(text: str | None, by: timedelta) -> str | None:
    if text is None:
        return None
    # A leap second is the next one, which a datetime has no way to say.
    leap = timedelta(seconds=1) if ":60" in text else timedelta()
    return (datetime.fromisoformat(text.replace(":60", ":59")) + leap + by).isoformat()


def view(resources: Resources, table: str) -> list[dict[str, Any]]:
    """The rows of a table's `_current` view."""
    project, _, _ = resources.dataset.partition(".")
    rows = bigquery(project).query_and_wait(f"SELECT * FROM `{resources.dataset}.{table}_current`")
    return [dict(row.items()) for row in rows]


def check_views(resources: Resources, arrivals: Sequence[Arrival], options: Options | None = None) -> None:
    """Fails unless the views show what the independent calculation gives."""
    wanted = expected(arrivals, options)
    for table in KEYS.keys() - {"consents"}:
        assert_rows_equal(view(resources, table), getattr(wanted, table), table)


class Nudges:
    """What has come out on the nudge topic."""

    def __init__(self, subscription: str) -> None:
        """`subscription` is on the nudge topic."""
        self._subscription = subscription
        self.messages: list[Any] = []

    def pull(self) -> None:
        """Takes in what there is now."""
        answer = subscriber().pull(
            subscription=self._subscription, max_messages=1000, return_immediately=True
        )
        if ids := [received.ack_id for received in answer.received_messages]:
            subscriber().acknowledge(subscription=self._subscription, ack_ids=ids)
        self.messages += [received.message for received in answer.received_messages]

    def by_type(self) -> Counter[tuple[str, str, str]]:
        """How many there are of each type, kind and severity, as the attributes state them."""
        names = ("type", "kind", "severity")
        return Counter(tuple(message.attributes[name] for name in names) for message in self.messages)

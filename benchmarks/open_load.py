"""An open load on the API, with locust: each request is due at a fixed time."""

import heapq
import itertools
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import gevent
from locust import FastHttpUser, constant, task
from locust.env import Environment
from locust.exception import StopUser

from benchmarks.phases import Figures, Phase

BATCH = 50
# The most requests in flight; enough that a sender is always free.
_USERS = 64
_PATIENTS = 200

# Valid events that cost little to make, mixed by kind as an app's events are.
_KINDS = (
    ('"kind":"exercise_session"', '{"duration_minutes":20,"overall_quality":0.8,"pain_level":1}', 2),
    ('"kind":"rep_observation","exercise_id":"squat"', '{"quality_score":0.9,"rep_number":3}', 12),
    ('"kind":"feedback"', '{"content":"Well done.","priority":"low"}', 3),
    ('"kind":"alert"', '{"alert_type":"fall_risk","urgency":"low"}', 2),
    ('"kind":"consent"', '{"granted":true}', 1),
)


class Due(NamedTuple):
    """A request, due at a time of `time.perf_counter` (seconds)."""

    at: float
    path: str
    events: int


class Bodies:
    """Events as JSON, each with its own id."""

    def __init__(self) -> None:
        self._run = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()
        self._kinds = itertools.cycle([kind for *kind, times in _KINDS for _ in range(times)])

    def event(self) -> str:
        number = next(self._numbers)
        head, body = next(self._kinds)
        now = datetime.now(UTC).isoformat()
        return (
            f'{{"event_id":"load-{self._run}-{number}",{head},"ts":"{now}",'
            f'"subject_id":"load-{number % _PATIENTS}","body":{body}}}'
        )

    def batch(self, size: int) -> str:
        return f'{{"events":[{",".join(self.event() for _ in range(size))}]}}'


class Load:
    """Sends phases of load to one API."""

    def __init__(self, url: str, token: str) -> None:
        bodies = Bodies()
        self._accepted = 0
        self._requests: Iterator[Due] = iter(())
        load = self

        class Sender(FastHttpUser):
            """One connection, which sends whatever is due next."""

            host = url
            wait_time = constant(0)
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}  # noqa: RUF012

            @task
            def send(self) -> None:
                due = next(load._requests, None)
                if due is None:
                    raise StopUser
                body = bodies.event() if due.events == 1 else bodies.batch(due.events)
                gevent.sleep(max(0.0, due.at - time.perf_counter()))
                with self.client.post(
                    due.path, data=body, headers=self.headers, catch_response=True
                ) as answer:
                    if answer.status_code in (201, 202):
                        load._accepted += due.events
                        answer.success()
                    else:
                        answer.failure(str(answer.status_code))
                    answer.request_meta["response_time"] = (time.perf_counter() - due.at) * 1000

        self._environment = Environment(user_classes=[Sender], host=url)
        self._runner = self._environment.create_local_runner()

    def run(self, phase: Phase) -> Figures:
        """Sends a phase."""
        self._environment.stats.reset_all()
        self._accepted = 0
        # Leaves a second to open the connections.
        began = time.perf_counter() + 1.0
        self._requests = _schedule(phase, began)
        self._runner.start(_USERS, spawn_rate=_USERS)
        gevent.sleep(1.0 + phase.seconds)
        while self._runner.user_count:
            gevent.sleep(0.05)
        seconds = time.perf_counter() - began
        self._runner.stop()
        total: Any = self._environment.stats.total
        p50, p95, p99 = (float(total.get_response_time_percentile(share) or 0) for share in (0.5, 0.95, 0.99))
        return Figures(seconds, total.num_requests, self._accepted, total.num_failures, p50, p95, p99)


def _schedule(phase: Phase, began: float) -> Iterator[Due]:
    return heapq.merge(
        _regular("/api/v1/events/batch", BATCH, phase.in_batches / BATCH, phase.seconds, began),
        _regular("/api/v1/events", 1, phase.single, phase.seconds, began),
    )


def _regular(path: str, events: int, per_second: float, seconds: float, began: float) -> Iterator[Due]:
    for number in range(round(per_second * seconds)):
        yield Due(began + number / per_second, path, events)

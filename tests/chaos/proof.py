"""The proof: killed again and again, between a Pub/Sub and a BigQuery that misbehave, the job loses nothing.

    python -m tests.chaos.proof --events=50000

Publishes a story of events (with copies, in disorder, some of them unusable) on both topics. The job is
killed at random moments and each time started again with --rebuild_days. In the end the views, the dead
letters, the nudges and the job's own counts are compared with what an independent calculation gives.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import batched
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import orjson
from google.pubsub_v1.types import Subscription

from local.emulators import bigquery_emulator
from pipeline.cloud.clients import publisher, subscriber
from pipeline.operations.provisioning import Resources, provision
from tests.chaos.background import Background, background
from tests.chaos.bigquery import MisbehavingBigQuery, misbehaving_bigquery
from tests.chaos.nudges import POLICY, judge
from tests.chaos.pubsub import MisbehavingPubSub, misbehaving_pubsub
from tests.chaos.schedule import Schedule
from tests.chaos.story import Sent, Story, tell
from tests.integration.streaming import PATIENT, SECRET, Job, accounted_for, view
from tests.support.oracle import KEYS, assert_rows_equal

_PROJECT = "rehab-local"
_RESOURCES = Resources(
    primary_topic=f"projects/{_PROJECT}/topics/primary",
    secondary_topic=f"projects/{_PROJECT}/topics/secondary",
    primary_subscription=f"projects/{_PROJECT}/subscriptions/primary",
    secondary_subscription=f"projects/{_PROJECT}/subscriptions/secondary",
    nudge_topic=f"projects/{_PROJECT}/topics/nudges",
    dataset=f"{_PROJECT}.chaos",
)
_NUDGE_SUBSCRIPTION = f"projects/{_PROJECT}/subscriptions/nudges"

# Of the calls to Pub/Sub, those at which its server dies for a moment.
_DEATH_SHARE = 0.01
# A call to BigQuery that gets no answer: the client would wait for a minute each time.
_TIMEOUT_SECONDS = 1.0
_PUBLISH_SECONDS = 600.0
# At a time: so that there are many calls, and many chances for faults.
_PUBLISH_MESSAGES = 50
# How long nothing may move: then the job hangs.
_STANDSTILL_SECONDS = 180.0
_LOOK_SECONDS = 0.2
# How long rows may take that are right in the end, once everything is acknowledged.
_SETTLE_SECONDS = 60.0

Say = Callable[[str], None]


class Figures(NamedTuple):
    """What the proof found. `problems` are the differences themselves."""

    events: int
    kills: int
    seconds: float
    pubsub_calls: int
    bigquery_calls: int
    faults: Counter[str]
    lost: int
    double_counted: int
    rows: int
    wrong_rows: int
    letters: int
    missing_letters: int
    unexpected_letters: int
    nudges: int
    missing_nudges: int
    unexpected_nudges: int
    log_lines: int
    telling_lines: int
    problems: list[str]

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, nothing was counted twice, and nothing was told."""
        return not any(
            (
                self.lost,
                self.double_counted,
                self.wrong_rows,
                self.missing_letters,
                self.unexpected_letters,
                self.missing_nudges,
                self.unexpected_nudges,
                self.telling_lines,
                self.problems,
            )
        )

    def lines(self) -> Iterator[str]:
        """The figures for people."""
        yield f"{self.events:,} events in {self.seconds:,.0f} s, {self.kills} kills"
        yield f"calls: {self.pubsub_calls:,} to Pub/Sub, {self.bigquery_calls:,} to BigQuery"
        yield f"faults injected: {self.faults.total():,}"
        for name, count in sorted(self.faults.items()):
            yield f"  {name:<34} {count:>7,}"
        yield f"lost                 {self.lost:,}"
        yield f"double counted       {self.double_counted:,}"
        yield f"rows                 {self.rows:,}, wrong {self.wrong_rows:,}"
        yield (
            f"dead letters         {self.letters:,}, missing {self.missing_letters:,},"
            f" unexpected {self.unexpected_letters:,}"
        )
        yield (
            f"nudges               {self.nudges:,}, missing {self.missing_nudges:,},"
            f" unexpected {self.unexpected_nudges:,}"
        )
        yield f"log lines            {self.log_lines:,}, with a patient's data {self.telling_lines:,}"
        yield from self.problems


def prove(events: int, kills: int, seed: int, share: float, folder: Path, say: Say = print) -> Figures:
    """Runs the proof with so many events and kills; `share` of the calls meet a fault."""
    began = time.monotonic()
    story = tell(events, seed)
    say(f"{story.events:,} events in {len(story.messages):,} messages, seed {seed}")
    with _world(folder, seed, share) as (pubsub, bigquery):
        run = _Run(story, pubsub, bigquery, Random(seed), folder, say)
        try:
            pubsub.misbehaviour.armed = bigquery.armed = True
            job = run.live_and_die(kills)
            run.await_rest(job)
            pubsub.misbehaviour.armed = bigquery.armed = False
            return _figures(story, run, job, kills, time.monotonic() - began)
        finally:
            run.jobs[-1].kill()


@contextmanager
def _world(folder: Path, seed: int, share: float) -> Iterator[tuple[MisbehavingPubSub, MisbehavingBigQuery]]:
    """Both servers, which the environment names, with everything that the job needs on them."""
    with ExitStack() as stack:
        runner: Background = stack.enter_context(background())
        emulator = stack.enter_context(bigquery_emulator(folder, folder / "bigquery"))
        pubsub = stack.enter_context(misbehaving_pubsub(runner, Schedule(seed, share), _DEATH_SHARE))
        bigquery = stack.enter_context(
            misbehaving_bigquery(runner, emulator, Schedule(seed, share), _TIMEOUT_SECONDS)
        )
        named = {"PUBSUB_EMULATOR_HOST": pubsub.address, "BIGQUERY_EMULATOR_HOST": bigquery.url}
        stack.enter_context(patch.dict(os.environ, named))
        provision(_RESOURCES, report=lambda line: None)
        for path in (_RESOURCES.primary_subscription, _RESOURCES.secondary_subscription):
            # The shortest: what a killed job held, and what it acknowledged in vain, comes back soon.
            soon = Subscription(name=path, ack_deadline_seconds=10)
            mask = {"paths": ["ack_deadline_seconds"]}
            subscriber().update_subscription(request={"subscription": soon, "update_mask": mask})
        subscriber().create_subscription(name=_NUDGE_SUBSCRIPTION, topic=_RESOURCES.nudge_topic)
        yield pubsub, bigquery


class _Run:
    """The story being published, and the lives of the job."""

    def __init__(
        self,
        story: Story,
        pubsub: MisbehavingPubSub,
        bigquery: MisbehavingBigQuery,
        rng: Random,
        folder: Path,
        say: Say,
    ) -> None:
        self.jobs: list[Job] = []
        self.pubsub = pubsub
        self.bigquery = bigquery
        self._story = story
        self._rng = rng
        self._folder = folder
        self._say = say
        self._policy = folder / "policy.yaml"
        self._policy.write_text(POLICY)

    def live_and_die(self, kills: int) -> Job:
        """Publishes part after part, with a kill in each but the last; gives the job that lives."""
        parts = _parts(self._story.messages, kills + 1, self._rng)
        published = 0
        for number, part in enumerate(parts[:-1]):
            job = self._start()
            publishing = _publish_aside(part)
            published += sum(message.events for message in part)
            # The moment: when the job has come so far with all that there is until now.
            target = round(self._rng.random() * published)
            self._await(job, lambda: accounted_for(job.metrics()["counters"]) >= target)  # noqa: B023
            job.kill()
            self._say(f"kill {number + 1}: when it had taken in {target:,} of {published:,} events")
            publishing()
        job = self._start()
        _publish_aside(parts[-1])()
        return job

    def await_rest(self, job: Job) -> None:
        """Waits until everything is acknowledged, and the job has told of it."""
        subscriptions = (_RESOURCES.primary_subscription, _RESOURCES.secondary_subscription)
        left = self.pubsub.pubsub.undelivered
        self._await(job, lambda: not any(left(subscription) for subscription in subscriptions))
        settled = datetime.now(UTC).isoformat()
        self._await(job, lambda: job.metrics().get("updated_at", "") > settled)

    def _start(self) -> Job:
        more = ["--rebuild_days=31"] if self.jobs else []
        options = (f"--policy_config={self._policy}", "--nudge_max_age_hours=0", "--batch_size=20", *more)
        self.jobs.append(Job(_RESOURCES, self._folder / f"job-{len(self.jobs)}", *options))
        return self.jobs[-1]

    def _await(self, job: Job, reached: Callable[[], bool]) -> None:
        seen, moved = None, time.monotonic()
        while not reached():
            if job.process.poll() is not None:
                raise AssertionError(f"the job has ended by itself:\n{_tail(job)}")
            if (now := job.metrics()["counters"]) != seen:
                seen, moved = now, time.monotonic()
            if time.monotonic() - moved > _STANDSTILL_SECONDS:
                raise AssertionError(
                    f"the job has stood still for {_STANDSTILL_SECONDS:.0f} s:\n{_tail(job)}"
                )
            time.sleep(_LOOK_SECONDS)


def _tail(job: Job) -> str:
    return "\n".join(job.log.read_text().splitlines()[-40:])


def _parts(messages: Sequence[Sent], count: int, rng: Random) -> list[list[Sent]]:
    """The messages in so many parts of random sizes."""
    bounds = sorted(rng.randrange(len(messages)) for _ in range(count - 1))
    starts, ends = [0, *bounds], [*bounds, len(messages)]
    return [list(messages[start:end]) for start, end in zip(starts, ends, strict=True)]


def _publish_aside(messages: Iterable[Sent]) -> Callable[[], None]:
    """Publishes in a thread; the result waits for it, and raises what Pub/Sub has refused."""
    errors: list[BaseException] = []

    def publish() -> None:
        topics = (_RESOURCES.primary_topic, _RESOURCES.secondary_topic)
        for portion in batched(messages, _PUBLISH_MESSAGES, strict=False):
            futures = [publisher().publish(topics[each.to_secondary], each.payload) for each in portion]
            errors.extend(error for future in futures if (error := future.exception(_PUBLISH_SECONDS)))

    def finish() -> None:
        thread.join()
        assert not errors, errors[0]

    thread = threading.Thread(target=publish)
    thread.start()
    return finish


# --- What came of it


def _figures(story: Story, run: _Run, job: Job, kills: int, seconds: float) -> Figures:
    counters = job.metrics()["counters"]
    processed = sum(count for name, count in counters.items() if ".event.processed." in name)
    rows, wrong_rows, problems = _settled_rows(story)
    letters = Counter(bytes(letter["payload"]) for letter in view(_RESOURCES, "dead_letters"))
    wanted_letters = Counter(dict.fromkeys(story.letters, 1))
    nudges = judge(_nudge_messages(), story)
    lines = [line for each in run.jobs for line in each.log.read_text(errors="replace").splitlines()]
    faults = Counter({f"Pub/Sub: {name}": n for name, n in run.pubsub.schedule.faults.items()})
    faults |= Counter({f"BigQuery: {name}": n for name, n in run.bigquery.schedule.faults.items()})
    return Figures(
        events=story.events,
        kills=kills,
        seconds=seconds,
        pubsub_calls=run.pubsub.schedule.calls,
        bigquery_calls=run.bigquery.schedule.calls,
        faults=faults,
        lost=max(0, len(story.arrivals) - processed),
        double_counted=max(0, processed - len(story.arrivals)),
        rows=rows,
        wrong_rows=wrong_rows,
        letters=letters.total(),
        missing_letters=(wanted_letters - letters).total(),
        unexpected_letters=(letters - wanted_letters).total(),
        nudges=nudges.ids,
        missing_nudges=len(nudges.missing),
        unexpected_nudges=len(nudges.unexpected),
        log_lines=len(lines),
        telling_lines=sum(PATIENT in line or SECRET in line for line in lines),
        problems=[*problems, *_reasons(story)],
    )


def _settled_rows(story: Story) -> tuple[int, int, list[str]]:
    """How many rows the views show, how many of them are wrong, and how."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        rows, wrong, problems = _check_rows(story)
        if not wrong or time.monotonic() > deadline:
            return rows, wrong, problems
        time.sleep(_LOOK_SECONDS)


def _check_rows(story: Story) -> tuple[int, int, list[str]]:
    count, wrong, problems = 0, 0, []
    for table in sorted(KEYS.keys() - {"consents"}):
        rows = view(_RESOURCES, table)
        count += len(rows)
        try:
            assert_rows_equal(rows, getattr(story.expected, table), table)
        except AssertionError as differences:
            problems += str(differences).splitlines()[:20]
            wrong += len(str(differences).splitlines()) - 1
    return count, wrong, problems


def _nudge_messages() -> Iterator[dict[str, Any]]:
    while True:
        answer = subscriber().pull(
            subscription=_NUDGE_SUBSCRIPTION, max_messages=1000, return_immediately=True
        )
        if not answer.received_messages:
            return
        ids = [received.ack_id for received in answer.received_messages]
        subscriber().acknowledge(subscription=_NUDGE_SUBSCRIPTION, ack_ids=ids)
        yield from (orjson.loads(received.message.data) for received in answer.received_messages)


def _reasons(story: Story) -> list[str]:
    found = {bytes(row["payload"]): row["reason"] for row in view(_RESOURCES, "dead_letters")}
    wrong = {
        (reason, found[payload])
        for payload, reason in story.letters.items()
        if payload in found and found[payload] != reason
    }
    return [f"a dead letter says {got} where {reason} is right" for reason, got in sorted(wrong)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.proof", description=__doc__)
    parser.add_argument("--events", type=int, default=6000, help="how many events (default 6000)")
    parser.add_argument("--kills", type=int, default=5, help="how often the job is killed (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="equal seeds tell equal stories (default 1)")
    parser.add_argument("--faults", type=float, default=0.1, help="share of calls that fail (default 0.1)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rehab-chaos-") as folder:
        figures = prove(options.events, options.kills, options.seed, options.faults, Path(folder))
    print(*figures.lines(), sep="\n")
    return 0 if figures.holds else 1


if __name__ == "__main__":
    sys.exit(main())

"""Streaming on Beam's DirectRunner: its Pub/Sub read, and what a bundle costs there.

Beam's own read for this runner takes 10 messages at a time, blocks the runner's only thread in the
pull (with two subscriptions of which one is idle, everything stops, timers included), and
acknowledges before anything is processed, so that a crash loses what was in flight. This module
reads in a thread for each subscription, hands over what is there, and acknowledges when the rows
that came of it have been written. It knows the runner's insides, so it insists on the version that
it was made for.
"""

import logging
import queue
import threading
import time
from collections import deque
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.direct.transform_evaluator import (
    TransformEvaluatorRegistry,
    _FlattenEvaluator,
    _ParDoEvaluator,
    _TransformEvaluator,
)
from apache_beam.runners.direct.util import TransformResult
from apache_beam.runners.runner import PipelineResult
from apache_beam.runners.worker.statesampler import get_current_tracker
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type

from pipeline.clients import subscriber
from transforms.message import Message

_LOGGER = logging.getLogger(__name__)

BEAM_VERSION = "2.77."

MAX_MESSAGES = 1000
# Pulled and not yet handed over: with MAX_MESSAGES each, what bounds the memory while the runner is busy.
_MAX_WAITING_PULLS = 4
# Long, because a message that is on its way when a pull is given up is away until its deadline passes.
_PULL_TIMEOUT_SECONDS = 60
_IDLE_WAIT_SECONDS = 0.01
# A row waits in one buffer, and if BigQuery refuses it, its dead letter in a second one.
_BUFFERS_IN_SERIES = 2
# Acknowledgements in a request: ids of 200 bytes stay far under Pub/Sub's 512 KiB.
_MAX_ACK_IDS = 1000

_TRANSIENT = (
    exceptions.ServerError,
    exceptions.TooManyRequests,
    exceptions.Aborted,
    exceptions.Cancelled,
    exceptions.DeadlineExceeded,
    exceptions.RetryError,
)
_RETRY = Retry(predicate=if_exception_type(*_TRANSIENT), initial=0.1, maximum=10, timeout=600)


class SourceError(RuntimeError):
    """A subscription that cannot be read; the message is one sentence for the operator."""


class ReadFromPubSubDirect(beam.PTransform[Any, Any]):
    """PBegin → Message, element timestamps are publish times; runs on `StreamingDirectRunner` alone."""

    def __init__(self, subscription: str, hold_seconds: float) -> None:
        """`hold_seconds` is the longest that a row waits in a batch."""
        super().__init__()
        self.subscription = subscription
        self.hold_seconds = hold_seconds

    def expand(self, pipeline: pvalue.PBegin) -> Any:
        return beam.PCollection(pipeline.pipeline, element_type=Message, is_bounded=False)

    def get_windowing(self, inputs: Any) -> beam.Windowing:
        return beam.Windowing(GlobalWindows())


class StreamingDirectRunner(BundleBasedDirectRunner):
    """Beam's streaming DirectRunner with the read above, and bundles that cost what they hold."""

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        """Starts the pipeline. Raises SourceError if a subscription cannot be read."""
        if not beam.__version__.startswith(BEAM_VERSION):
            raise SourceError(
                f"Streaming on the DirectRunner needs apache-beam {BEAM_VERSION}x, not {beam.__version__}."
            )
        _check_subscriptions(pipeline)
        overrides = TransformEvaluatorRegistry._test_evaluators_overrides
        before = dict(overrides)
        # The registry copies these when it is made, within the call.
        overrides.update(_EVALUATORS)
        try:
            return super().run_pipeline(pipeline, options)
        finally:
            overrides.clear()
            overrides.update(before)


class _Subscriptions(beam.pipeline.PipelineVisitor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def visit_transform(self, applied: Any) -> None:
        if isinstance(applied.transform, ReadFromPubSubDirect):
            self.names.append(applied.transform.subscription)


def _check_subscriptions(pipeline: beam.Pipeline) -> None:
    subscriptions = _Subscriptions()
    pipeline.visit(subscriptions)
    for name in subscriptions.names:
        try:
            subscriber().get_subscription(subscription=name, timeout=10)
        except exceptions.GoogleAPICallError as error:
            raise _source_error(name, error) from None


def _source_error(subscription: str, error: Exception) -> SourceError:
    return SourceError(f"{subscription} cannot be read ({type(error).__name__}).")


class Pulled(NamedTuple):
    """What one pull brought: messages and the ids by which they are acknowledged."""

    messages: list[Message]
    ack_ids: list[str]


class AckSchedule:
    """When what was handed over may be acknowledged.

    The runner asks for more only while nothing is in flight. So at the first call after the messages
    were handed over they have reached the batches; at a call that is `hold_seconds` later the batches'
    timers have fired and the rows are written; and a second such interval covers the dead letters of
    rows that were refused.
    """

    def __init__(self, hold_seconds: float) -> None:
        """`hold_seconds` is the longest that a row waits in a batch."""
        self._hold_seconds = hold_seconds
        self._stages: list[deque[tuple[float, list[str]]]] = [deque() for _ in range(_BUFFERS_IN_SERIES + 1)]

    def add(self, ack_ids: list[str]) -> None:
        """Takes in what is handed over now."""
        self._stages[0].append((0, ack_ids))

    def due(self, now: float) -> list[str]:
        """At a call of the runner, in seconds of a steady clock: what may be acknowledged."""
        done: list[str] = []
        for stage in reversed(range(len(self._stages))):
            waiting = self._stages[stage]
            while waiting and waiting[0][0] <= now:
                _, ack_ids = waiting.popleft()
                if stage == _BUFFERS_IN_SERIES:
                    done += ack_ids
                else:
                    self._stages[stage + 1].append((now + self._hold_seconds, ack_ids))
        return done


class _Subscription:
    """One subscription's threads: one pulls, one acknowledges."""

    def __init__(self, transform: ReadFromPubSubDirect, context: Any) -> None:
        self.name = transform.subscription
        self.schedule = AckSchedule(transform.hold_seconds)
        self.error: Exception | None = None
        self._context = context
        self._pulled: queue.Queue[Pulled] = queue.Queue(_MAX_WAITING_PULLS)
        self._acks: queue.Queue[list[str]] = queue.Queue()
        for work in (self._pull, self._acknowledge):
            threading.Thread(target=work, name=f"{work.__name__} {self.name}", daemon=True).start()

    def take(self) -> Pulled:
        """What is there, up to about a thousand messages; waits a moment if there is nothing."""
        taken = Pulled([], [])
        try:
            while len(taken.messages) < MAX_MESSAGES:
                pulled = self._pulled.get(timeout=0 if taken.messages else _IDLE_WAIT_SECONDS)
                taken.messages.extend(pulled.messages)
                taken.ack_ids.extend(pulled.ack_ids)
        except queue.Empty:
            pass
        return taken

    def acknowledge(self, ack_ids: list[str]) -> None:
        """Acknowledges, some time soon; what is not acknowledged comes again and is dropped as a duplicate."""
        for start in range(0, len(ack_ids), _MAX_ACK_IDS):
            self._acks.put(ack_ids[start : start + _MAX_ACK_IDS])

    def _pull(self) -> None:
        while not self._context.shutdown_requested:
            try:
                response = subscriber().pull(
                    subscription=self.name,
                    max_messages=MAX_MESSAGES,
                    timeout=_PULL_TIMEOUT_SECONDS,
                    retry=None,
                )
            except exceptions.DeadlineExceeded:
                continue
            except _TRANSIENT as error:
                _LOGGER.warning("Pulling failed and is tried again: %s", type(error).__name__)
                time.sleep(1)
                continue
            except exceptions.GoogleAPICallError as error:
                self.error = error
                return
            received = type(response).pb(response).received_messages
            if received:
                self._pulled.put(
                    Pulled([_message(self.name, r.message) for r in received], [r.ack_id for r in received])
                )

    def _acknowledge(self) -> None:
        while not self._context.shutdown_requested:
            ack_ids = self._acks.get()
            try:
                subscriber().acknowledge(subscription=self.name, ack_ids=ack_ids, retry=_RETRY)
            except exceptions.GoogleAPIError as error:
                _LOGGER.warning("%d acknowledgements failed: %s", len(ack_ids), type(error).__name__)


def _message(subscription: str, message: Any) -> Message:
    published = message.publish_time
    publish_us = published.seconds * 1_000_000 + published.nanos // 1000
    return Message(message.data, dict(message.attributes), subscription, message.message_id, publish_us)


class _ReadEvaluator(_TransformEvaluator):
    # By the applied transform, which lives as long as its pipeline.
    _subscriptions: ClassVar[WeakKeyDictionary[Any, _Subscription]] = WeakKeyDictionary()

    def process_element(self, element: Any) -> None:
        """The root's own empty bundle has nothing in it."""

    def finish_bundle(self) -> TransformResult:
        applied: Any = self._applied_ptransform
        subscription = self._subscriptions.get(applied)
        if subscription is None:
            subscription = _Subscription(applied.transform, self._evaluation_context)
            self._subscriptions[applied] = subscription
        if subscription.error:
            raise _source_error(subscription.name, subscription.error)
        subscription.acknowledge(subscription.schedule.due(time.monotonic()))
        taken = subscription.take()
        bundles = [self._bundle(taken.messages)] if taken.messages else []
        if taken.ack_ids:
            subscription.schedule.add(taken.ack_ids)
        # An empty bundle of its own is what makes the runner ask again.
        again = self._evaluation_context.create_bundle(pvalue.PBegin(applied.transform.pipeline))
        return TransformResult(self, bundles, [again], None, {None: Timestamp.of(time.time())})

    def _bundle(self, messages: list[Message]) -> Any:
        bundle = self._evaluation_context.create_bundle(next(iter(self._outputs)))
        for message in messages:
            timestamp = Timestamp(micros=message.publish_us)
            bundle.output(GlobalWindows.windowed_value(message, timestamp=timestamp))
        return bundle


def _without_empty(result: TransformResult) -> TransformResult:
    """Drops what would only set the steps behind it going; watermarks do not travel in bundles."""
    result.uncommitted_output_bundles = [b for b in result.uncommitted_output_bundles if b.has_elements()]
    return result


class _LeanParDoEvaluator(_ParDoEvaluator):
    def __init__(self, context: Any, applied: Any, bundle: Any, side_inputs: Any) -> None:
        # Every bundle would pickle its DoFn and read it back, only to prove that it can be done.
        super().__init__(context, applied, bundle, side_inputs, perform_dofn_pickle_test=False)

    def start_bundle(self) -> None:
        _metrics_container().reset()
        super().start_bundle()

    def finish_bundle(self) -> TransformResult:
        result = super().finish_bundle()
        # The worker keeps for each step the container of its first bundle, and the runner commits what
        # the container of each bundle holds: without this it would count the first bundle alone.
        container = _metrics_container()
        self._evaluation_context.metrics().commit_logical(None, container.get_cumulative())
        container.reset()
        return _without_empty(result)


def _metrics_container() -> Any:
    return get_current_tracker().current_state().metrics_container


class _LeanFlattenEvaluator(_FlattenEvaluator):
    def finish_bundle(self) -> TransformResult:
        return _without_empty(super().finish_bundle())


_EVALUATORS: dict[Any, Any] = {
    ReadFromPubSubDirect: _ReadEvaluator,
    beam.ParDo: _LeanParDoEvaluator,
    beam.Flatten: _LeanFlattenEvaluator,
}

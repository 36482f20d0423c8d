"""The stream on one machine: the DirectRunner's way of reading Pub/Sub, and what it takes to keep up.

Beam's BundleBasedDirectRunner is the only runner that executes processing-time timers without a
server, but its Pub/Sub read pulls ten messages at a time, blocks all timers while a subscription is
idle and acknowledges before anything is processed; and its bookkeeping costs milliseconds per step and
bundle, and more with every key. Everything that the project does about it is in this module, which
therefore rests on Beam's internals: on one version of them, and a test holds the parts it replaces.
"""

import copy
import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam

if not beam.__version__.startswith("2.77."):
    raise ImportError(
        f"Streaming on the DirectRunner is made for Apache Beam 2.77, and this is {beam.__version__}:"
        " install apache-beam[gcp]==2.77.0."
    )

from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.pipeline import AppliedPTransform
from apache_beam.pvalue import PBegin, PCollection
from apache_beam.runners.common import DoFnRunner, DoFnState, Receiver
from apache_beam.runners.direct import direct_runner, evaluation_context, executor, transform_evaluator
from apache_beam.runners.direct.bundle_factory import BundleFactory
from apache_beam.runners.direct.clock import RealClock
from apache_beam.runners.direct.consumer_tracking_pipeline_visitor import ConsumerTrackingPipelineVisitor
from apache_beam.runners.direct.direct_metrics import DirectMetrics
from apache_beam.runners.direct.direct_userstate import DirectUserStateContext
from apache_beam.runners.direct.util import TimerFiring, TransformResult
from apache_beam.runners.direct.watermark_manager import WatermarkManager
from apache_beam.runners.worker.statesampler import get_current_tracker
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils import counters
from apache_beam.utils.timestamp import Timestamp
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.pubsub_v1.types import PullResponse

from pipeline.cloud.clients import PUBSUB_TRANSIENT, subscriber
from pipeline.cloud.outages import OUTAGES, Call
from pipeline.errors import OperatorError
from transforms.message import Message
from transforms.times import MICROS

_LOGGER = logging.getLogger(__name__)

# What a pull asks for, and what the pipeline is handed at a time.
MAX_MESSAGES = 1000

# A subscription is pulled only while less than this waits for the pipeline, so at most twice as much does.
_ENOUGH_MESSAGES = 1000
_ENOUGH_BYTES = 16 * 1024 * 1024

# How long a pull waits for a message; after a failure not long, to find out whether it works again. When one
# has waited in vain, everything older has been read: a rebuild writes its rows that much later.
_PULL_SECONDS = 5.0
_TRY_SECONDS = 1.0

# A pull returns as soon as there is one message; at a pull for each, pulling would take more time than
# processing.
_PULL_PAUSE_SECONDS = 0.01
_ACKNOWLEDGE_EVERY_SECONDS = 0.1

# An idle pipeline looks at its timers so often: they fire that much late at the most.
_IDLE_SECONDS = 0.01

# A request may have 512 KiB; an acknowledgement id has a few hundred bytes.
_IDS_PER_REQUEST = 500
_REQUEST_SECONDS = 10.0

# How long a failed acknowledgement is tried again; then the messages are redelivered.
_ACKNOWLEDGE_PATIENCE_SECONDS = 60.0
_STOP_SECONDS = 5.0


class SubscriptionError(OperatorError):
    """A subscription cannot be read."""


class Held(NamedTuple):
    """Messages that were pulled and not acknowledged yet; the publish time (µs) of the oldest, if any."""

    messages: int
    oldest_us: int | None


@beam.typehints.with_output_types(Message)
class ReadFromPubSubDirect(beam.PTransform[Any, Any]):
    """PBegin → Message, with its publish time as timestamp; for the StreamingDirectRunner only.

    A message is acknowledged when it has passed two buffers in series (rows, then the dead letters of
    rows that were refused), each of which may hold it for `hold_seconds`.
    """

    def __init__(self, subscription: str, hold_seconds: float) -> None:
        """`subscription` is projects/PROJECT/subscriptions/NAME."""
        super().__init__()
        self.subscription = subscription
        self.hold_seconds = hold_seconds

    def expand(self, begin: PBegin) -> PCollection[Message]:
        return PCollection(begin.pipeline, is_bounded=False)

    def get_windowing(self, inputs: Any) -> beam.Windowing:
        return beam.Windowing(GlobalWindows())


class HoldLedger:
    """What was handed to the pipeline, until it has passed two buffers of `hold_seconds` each.

    The runner asks for more only when nothing is being processed and no timer is due. So when it asks
    for the first time after a hand-over, all of that is processed or in a first buffer; when it has
    asked at least `hold_seconds` later, the first buffer's timers have fired, and what came out is
    processed or in a second one; and the same again.
    """

    def __init__(self, hold_seconds: float) -> None:
        """With nothing handed over yet."""
        self._hold_seconds = hold_seconds
        self._handed_over: list[str] = []
        self._buffered: tuple[deque[tuple[float, list[str]]], ...] = (deque(), deque())
        self._asked_at = float("-inf")

    def add(self, ids: list[str]) -> None:
        """Remembers what was handed over."""
        self._handed_over += ids

    def turn(self, now: float) -> list[str]:
        """The ids that may be acknowledged, when the runner asks at `now` (seconds, the timers' clock)."""
        # The timers due at the last time of asking have fired since; those due now maybe not.
        begun_before = self._asked_at - self._hold_seconds
        first, second = self._buffered
        settled = _begun_before(second, begun_before)
        if moved := _begun_before(first, begun_before):
            second.append((now, moved))
        if self._handed_over:
            first.append((now, self._handed_over))
            self._handed_over = []
        self._asked_at = now
        return settled

    def held(self) -> list[str]:
        """All ids that may not be acknowledged yet."""
        buffered = itertools.chain(*self._buffered)
        return [*itertools.chain.from_iterable(ids for _, ids in buffered), *self._handed_over]


def _begun_before(entries: deque[tuple[float, list[str]]], limit: float) -> list[str]:
    ids: list[str] = []
    while entries and entries[0][0] <= limit:
        ids += entries.popleft()[1]
    return ids


class _Subscription:
    """One subscription: a thread pulls its messages, another acknowledges them.

    No deadline is extended: a message is held for a few seconds, and the subscription's deadline is
    longer. If BigQuery is out for longer than that, Pub/Sub delivers again what waits, and the
    deduplication drops it.
    """

    def __init__(
        self,
        read: ReadFromPubSubDirect,
        changed: threading.Condition,
        fail: Callable[[SubscriptionError], None],
    ) -> None:
        """`changed` guards what is waiting in all subscriptions; `fail` ends the pipeline."""
        self._path = read.subscription
        self._pulling = Call("Pub/Sub", f"subscription {self._path}", "pull from")
        self._changed = changed
        self._fail = fail
        self._ledger = HoldLedger(read.hold_seconds)
        self._waiting: deque[tuple[Message, str]] = deque()
        self._waiting_bytes = 0
        self._unacknowledged: dict[str, int] = {}
        self._read_until_us = 0
        self._settled: list[str] = []
        self._stopped = threading.Event()
        self._puller = threading.Thread(target=self._pull_forever, name=f"pull {self._path}", daemon=True)
        self._answerer = threading.Thread(target=self._answer, name=f"answer {self._path}", daemon=True)

    def start(self) -> None:
        """Starts to pull."""
        self._puller.start()
        self._answerer.start()

    def stop(self) -> None:
        """Acknowledges what may be, and gives back the rest: the next reader need not wait for it."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()

    def join(self) -> None:
        """Waits until `stop` has done so, but not for long."""
        self._answerer.join(_PULL_SECONDS + 2 * _STOP_SECONDS)

    def waiting(self) -> int:
        """How many messages the pipeline has not asked for yet."""
        return len(self._waiting)

    def read_until_us(self) -> int:
        """Every message published before this (µs) has been taken.

        Pub/Sub hands out the oldest messages first, and none only when there are none left.
        """
        with self._changed:
            return self._waiting[0][0].publish_us if self._waiting else self._read_until_us

    def held(self) -> Held:
        """What Pub/Sub still answers for."""
        with self._changed:
            return Held(len(self._unacknowledged), min(self._unacknowledged.values(), default=None))

    def take(self, now: float) -> list[Message]:
        """Up to MAX_MESSAGES, when the runner asks at `now`."""
        with self._changed:
            if self._stopped.is_set():
                return []
            self._settled += self._ledger.turn(now)
            count = min(MAX_MESSAGES, len(self._waiting))
            taken = [self._waiting.popleft() for _ in range(count)]
            self._waiting_bytes -= sum(len(message.payload) for message, _ in taken)
            self._ledger.add([ack_id for _, ack_id in taken])
            self._changed.notify_all()
        return [message for message, _ in taken]

    def _pull_forever(self) -> None:
        try:
            while self._wait_for_room():
                received, until_us = self._pull()
                self._keep(received, until_us)
                if len(received) < MAX_MESSAGES // 10:
                    self._stopped.wait(_PULL_PAUSE_SECONDS)
        except Exception as error:
            if not self._stopped.is_set():
                self._fail(SubscriptionError(_explanation(self._path, error)))

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped.is_set()
                    or (len(self._waiting) < _ENOUGH_MESSAGES and self._waiting_bytes < _ENOUGH_BYTES)
                )
            )
        return not self._stopped.is_set()

    def _pull(self) -> tuple[list[tuple[Message, str]], int]:
        """What there is now, and the time (µs) up to which that is everything."""
        retry = Retry(
            predicate=lambda error: isinstance(error, PUBSUB_TRANSIENT) and not self._stopped.is_set(),
            initial=0.1,
            maximum=10.0,
            timeout=None,
            on_error=self._note_failure,
        )
        received: tuple[list[tuple[Message, str]], int] = retry(self._pull_once)()
        OUTAGES.answered(self._pulling)
        return received

    def _note_failure(self, error: Exception) -> None:
        _LOGGER.warning("Pulling from %s failed (%s) and is tried again.", self._path, type(error).__name__)
        OUTAGES.failed(self._pulling, error)

    def _pull_once(self) -> tuple[list[tuple[Message, str]], int]:
        timeout = _TRY_SECONDS if self._pulling in OUTAGES.current() else _PULL_SECONDS
        began_us = int(time.time() * MICROS)
        try:
            response = subscriber().pull(
                subscription=self._path, max_messages=MAX_MESSAGES, retry=None, timeout=timeout
            )
        except exceptions.DeadlineExceeded:
            response = PullResponse()
        # The plain protocol buffer: reading the wrapper's fields takes longer than the pull.
        messages = [self._message(received) for received in PullResponse.pb(response).received_messages]
        return messages, max((message.publish_us for message, _ in messages), default=began_us)

    def _message(self, received: Any) -> tuple[Message, str]:
        message = received.message
        publish_us = message.publish_time.seconds * MICROS + message.publish_time.nanos // 1000
        return (
            Message(message.data, dict(message.attributes), self._path, message.message_id, publish_us),
            received.ack_id,
        )

    def _keep(self, received: list[tuple[Message, str]], until_us: int) -> None:
        with self._changed:
            self._read_until_us = max(self._read_until_us, until_us)
            if not self._stopped.is_set():
                self._waiting += received
                self._unacknowledged.update((ack_id, message.publish_us) for message, ack_id in received)
                self._waiting_bytes += sum(len(message.payload) for message, _ in received)
                self._changed.notify_all()
                return
        self._give_back([ack_id for _, ack_id in received])

    def _answer(self) -> None:
        while not self._stopped.wait(_ACKNOWLEDGE_EVERY_SECONDS):
            self._acknowledge_settled()
        self._acknowledge_settled()
        with self._changed:
            unfinished = [*self._ledger.held(), *(ack_id for _, ack_id in self._waiting)]
        if unfinished:
            self._give_back(unfinished)
            # A pull that is under way (and cannot be called off) may get them, and gives them back again.
            self._puller.join(_PULL_SECONDS + _STOP_SECONDS)

    def _acknowledge_settled(self) -> None:
        with self._changed:
            ids, self._settled = self._settled, []
        for portion in itertools.batched(ids, _IDS_PER_REQUEST, strict=False):
            self._request("acknowledge", ack_ids=list(portion))
            with self._changed:
                for ack_id in portion:
                    self._unacknowledged.pop(ack_id, None)
            _LOGGER.debug("%s: %d messages acknowledged.", self._path, len(portion))

    def _give_back(self, ids: list[str]) -> None:
        for portion in itertools.batched(ids, _IDS_PER_REQUEST, strict=False):
            self._request("modify_ack_deadline", ack_ids=list(portion), ack_deadline_seconds=0)

    def _request(self, method: str, **arguments: Any) -> None:
        patience = _STOP_SECONDS if self._stopped.is_set() else _ACKNOWLEDGE_PATIENCE_SECONDS
        retry = Retry(
            predicate=lambda error: isinstance(error, PUBSUB_TRANSIENT),
            initial=0.1,
            maximum=10.0,
            timeout=patience,
        )
        call = getattr(subscriber(), method)
        try:
            retry(call)(subscription=self._path, **arguments, retry=None, timeout=_REQUEST_SECONDS)
        except Exception as error:
            # Not the end of the pipeline: they are delivered again, and dropped as duplicates. After the
            # end of the pipeline, whoever runs the emulator may have ended it as well.
            _LOGGER.log(
                logging.DEBUG if self._stopped.is_set() else logging.WARNING,
                "%s: %s failed for %d messages (%s); they will be delivered again.",
                self._path,
                method,
                len(arguments["ack_ids"]),
                type(error).__name__,
            )


def _explanation(path: str, error: Exception) -> str:
    if isinstance(error, exceptions.NotFound):
        return f"The subscription {path} does not exist: create it with `python -m pipeline.provision`."
    if isinstance(error, exceptions.PermissionDenied):
        return f"The subscription {path} may not be read with these credentials: they lack a role for it."
    return f"The subscription {path} cannot be read: {str(error).partition('\n')[0]}"


class _ReadEvaluator(transform_evaluator._TransformEvaluator):
    """Hands over what is waiting in a subscription, when the runner asks for more."""

    _evaluation_context: "_EvaluationContext"

    def process_element(self, element: Any) -> None:
        """The element is only what brings the runner back here."""

    def finish_bundle(self) -> TransformResult:
        context = self._evaluation_context
        context.wait_for_messages()
        messages = context.subscriptions[self._applied_ptransform].take(context.now())
        watermark = context.read_watermark()
        (output,) = self._outputs
        bundles = []
        if messages:
            bundles.append(context.create_bundle(output))
            for message in messages:
                timestamp = Timestamp(micros=message.publish_us)
                bundles[0].output(GlobalWindows.windowed_value(message, timestamp=timestamp))
        # As Beam's own roots do, but not empty: Beam keeps empty bundles for ever.
        again = context.create_bundle(PBegin(output.pipeline))
        again.add(GlobalWindows.windowed_value(None, timestamp=watermark))
        return TransformResult(self, bundles, [again], None, {None: watermark})


class _Output(Receiver):
    """One output of a step; passes what comes on to the bundle of the moment."""

    def __init__(self, step: AppliedPTransform, tag: Any) -> None:
        self.pcollection: PCollection[Any] = PCollection(step.inputs[0].pipeline, tag=tag)
        self.pcollection.producer = step
        self.bundle: Any = None

    def receive(self, windowed_value: Any) -> None:
        self.bundle.add(windowed_value)


class _Step:
    """A DoFn that is set up once. Beam pickles and inspects it anew for every bundle."""

    def __init__(self, step: AppliedPTransform, side_inputs: list[Any]) -> None:
        transform: Any = step.transform
        dofn = pickler.roundtrip(transform.dofn)
        self.outputs = [_Output(step, tag) for tag in step.outputs]
        receivers = transform_evaluator._TaggedReceivers(None)
        receivers.update({output.pcollection.tag: output for output in self.outputs})
        element_type = step.inputs[0].element_type
        self.key_coder = coders.registry.get_coder(Any)
        self.state: DirectUserStateContext | None = None
        self.timers: dict[str, Any] = {}
        if beam.transforms.userstate.is_stateful_dofn(dofn):
            if element_type and element_type != Any:
                self.key_coder = coders.registry.get_coder(element_type).key_coder()
            self.state = DirectUserStateContext(None, dofn, self.key_coder)
            self.timers = {f"user/{spec.name}": spec for spec in self.state.all_timer_specs}
        self.runner = DoFnRunner(
            dofn,
            getattr(transform, "args", []),
            getattr(transform, "kwargs", {}),
            side_inputs,
            step.inputs[0].windowing,
            tagged_receivers=receivers,
            step_name=step.full_label,
            state=DoFnState(counters.CounterFactory()),
            user_state_context=self.state,
        )
        self.runner.setup()


class _StepEvaluator(transform_evaluator._ParDoEvaluator):
    """Evaluates a bundle with the step's one DoFn."""

    _evaluation_context: "_EvaluationContext"

    def start_bundle(self) -> None:
        # Back at the end of the bundle: a DoFn that has raised is not used again.
        step = self._evaluation_context.steps.pop(self._applied_ptransform, None)
        self._step = step or _Step(self._applied_ptransform, self._side_inputs)
        self.runner = self._step.runner
        self.key_coder = self._step.key_coder
        self.user_timer_map = self._step.timers
        for output in self._step.outputs:
            output.bundle = self._evaluation_context.create_bundle(output.pcollection)
        if self._step.state:
            self._step.state.step_context = self._step_context
        _measured().reset()
        self.runner.start()

    def process_timer_wrapper(self, timer_firing: TimerFiring) -> None:
        # A bundle that came first may have moved or cleared the timer; Beam would clear the moved one.
        timers = self._step_context.get_keyed_state(timer_firing.encoded_key).timers
        name = (timer_firing.name, timer_firing.time_domain, timer_firing.dynamic_timer_tag)
        if timers.get(timer_firing.window, {}).get(name) == timer_firing.timestamp:
            super().process_timer_wrapper(timer_firing)

    def finish_bundle(self) -> TransformResult:
        self.runner.finish()
        if self._step.state:
            self._step.state.commit()
            self._step.state.reset()
        if self._side_inputs:  # their values are bound to the DoFn
            self.runner.teardown()
        else:
            self._evaluation_context.steps[self._applied_ptransform] = self._step
        # The worker measures each step in the container of its first bundle for ever; the runner commits
        # the container of each bundle, and would count the first bundle alone.
        measured = _measured()
        self._evaluation_context.metrics().commit_logical(None, measured.get_cumulative())
        measured.reset()
        bundles = [output.bundle for output in self._step.outputs]
        return TransformResult(self, bundles, [], None, None)


def _measured() -> Any:
    """The container of the metrics of the step that runs."""
    return get_current_tracker().current_state().metrics_container


class _Registry(transform_evaluator.TransformEvaluatorRegistry):
    """Beam's evaluators, but for reads and DoFns."""

    def __init__(self, context: "_EvaluationContext") -> None:
        super().__init__(context)
        self._evaluators[ReadFromPubSubDirect] = _ReadEvaluator
        self._evaluators[beam.ParDo] = _StepEvaluator

    def should_execute_serially(self, applied_ptransform: AppliedPTransform) -> bool:
        # There is one worker thread, and it takes bundles in their order. Beam's queue for serial steps
        # reverses it, and to find out which steps those are it inspects their DoFn for every bundle.
        return False


class _StepContext(evaluation_context.DirectStepContext):
    """A bundle's view of its step's state, which is copied without `deepcopy`."""

    def get_keyed_state(self, key: bytes | None) -> evaluation_context.DirectUnmergedState:
        state = self.partial_keyed_state.get(key)
        if state is None:
            state = self.partial_keyed_state[key] = _copied(self.existing_keyed_state.get(key))
        return state


def _copied(
    state: evaluation_context.DirectUnmergedState | None,
) -> evaluation_context.DirectUnmergedState:
    copied = evaluation_context.DirectUnmergedState()
    if state is None:
        return copied
    if state.global_state:
        copied.global_state = copy.deepcopy(state.global_state)
    for window, timers in state.timers.items():
        copied.timers[window] = dict(timers)
    for window, tags in state.state.items():
        for tag, value in tags.items():
            copied.state[window][tag] = copy.copy(value)
    return copied


class _ExecutionContext(evaluation_context._ExecutionContext):
    def __init__(self, watermarks: Any, keyed_states: "_KeyedStates") -> None:
        super().__init__(watermarks, keyed_states)
        self._step_context: Any = _StepContext(keyed_states)


class DueKeys:
    """Keys in the order in which a timer of theirs may fall due."""

    def __init__(self) -> None:
        """Without a key."""
        self._heap: list[tuple[float, int, bytes | None]] = []
        self._earliest: dict[bytes | None, float] = {}
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._earliest)

    def add(self, key: bytes | None, moment: float) -> None:
        """A timer of the key may fall due then.

        A timer that is put off leaves its old moment in place, at which whoever pops it adds it again:
        a timer that every event puts off costs nothing but at its first moment.
        """
        earliest = self._earliest.get(key)
        if earliest is None or moment < earliest:
            self._earliest[key] = moment
            heapq.heappush(self._heap, (moment, next(self._order), key))

    def pop(self, now: float) -> list[bytes | None]:
        """Removes the keys whose moment has come."""
        keys = []
        while self._heap and self._heap[0][0] <= now:
            moment, _, key = heapq.heappop(self._heap)
            if self._earliest.get(key) == moment:
                del self._earliest[key]
                keys.append(key)
        return keys


class _KeyedStates(dict[bytes | None, Any]):
    """One step's state by key. Beam looks through all keys, several times a bundle, for due timers."""

    def __init__(self) -> None:
        super().__init__()
        self._due = {TimeDomain.REAL_TIME: DueKeys(), TimeDomain.WATERMARK: DueKeys()}
        self.bytes = 0

    def __setitem__(self, key: bytes | None, state: Any) -> None:
        self.bytes += _size(state) - _size(self.get(key))
        if _is_blank(state):
            self.pop(key, None)
        else:
            super().__setitem__(key, state)
            self._watch(key, state)

    def has_realtime_timers(self) -> bool:
        """Whether any timer in processing time may be set."""
        return bool(self._due[TimeDomain.REAL_TIME])

    def due(self, watermark: Timestamp, now: float) -> list[TimerFiring]:
        """The timers that are due; they stay so until they are delivered and the state is set again."""
        keys = self._due[TimeDomain.REAL_TIME].pop(now) + self._due[TimeDomain.WATERMARK].pop(
            float(watermark)
        )
        firings = []
        for key in dict.fromkeys(keys):
            if (state := self.get(key)) is None:
                continue
            expired, _ = state.get_timers(watermark=watermark, processing_time=now)
            for window, (name, domain, timestamp, tag) in expired:
                firings.append(TimerFiring(key, window, name, domain, timestamp, dynamic_timer_tag=tag))
            self._watch(key, state)
        return sorted(firings, key=lambda firing: firing.timestamp)

    def _watch(self, key: bytes | None, state: Any) -> None:
        for timers in state.timers.values():
            for (_, domain, _), timestamp in timers.items():
                self._due[domain].add(key, float(timestamp))


def _values(state: Any) -> Iterator[list[Any]]:
    return itertools.chain.from_iterable(tags.values() for tags in state.state.values())


def _is_blank(state: Any) -> bool:
    return not state.timers and not state.global_state and not any(_values(state))


def _size(state: Any) -> int:
    """The bytes of the encoded values in a key's state; null has none."""
    values = itertools.chain.from_iterable(_values(state)) if state else ()
    return sum(len(value) for value in values if isinstance(value, bytes))


class _WatermarkManager(WatermarkManager):
    def extract_all_timers(self) -> tuple[list[tuple[AppliedPTransform, list[TimerFiring]]], bool]:
        fired = []
        any_realtime = False
        now = self._clock.time()
        for step, watermarks in self._transform_to_watermarks.items():
            states = self._transform_keyed_states[step]
            if firings := states.due(watermarks.input_watermark, now):
                watermarks._fired_timers.update(firings)
                fired.append((step, firings))
            any_realtime = any_realtime or states.has_realtime_timers()
        return fired, any_realtime


class _Metrics(DirectMetrics):
    """Metrics that can be asked for while the pipeline adds to them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def _apply_operation(self, bundle: Any, updates: Any, op: Any) -> None:
        with self._lock:
            super()._apply_operation(bundle, updates, op)

    def query(self, filter: Any = None) -> Any:
        with self._lock:
            return super().query(filter)


class _EvaluationContext(evaluation_context.EvaluationContext):
    """What the run of one pipeline knows; nothing of it outlives the run."""

    def __init__(self, options: PipelineOptions, graph: ConsumerTrackingPipelineVisitor) -> None:
        clock = RealClock()
        # Stacking saves memory by comparing every element with the one before.
        super().__init__(
            options,
            BundleFactory(stacked=False),
            graph.root_transforms,
            graph.value_to_consumers,
            graph.step_names,
            graph.views,
            clock,
        )
        self._watermark_manager = _WatermarkManager(
            clock, graph.root_transforms, graph.value_to_consumers, self._transform_keyed_states
        )
        self._metrics = _Metrics()
        self._clock = clock
        self._changed = threading.Condition()
        self._read_watermark = 0
        self.subscriptions: dict[AppliedPTransform, _Subscription] = {}
        self.steps: dict[AppliedPTransform, _Step] = {}

    def start(self, fail: Callable[[SubscriptionError], None]) -> None:
        """Starts to pull from every subscription."""
        for step in self._root_transforms:
            if isinstance(step.transform, ReadFromPubSubDirect):
                self.subscriptions[step] = _Subscription(step.transform, self._changed, fail)
        for subscription in self.subscriptions.values():
            subscription.start()

    def stop(self) -> None:
        """Ends what `start` and the steps have started; the worker has ended."""
        for subscription in self.subscriptions.values():
            subscription.stop()
        for subscription in self.subscriptions.values():
            subscription.join()
        for step in self.steps.values():
            step.runner.teardown()
        self.steps.clear()

    def now(self) -> float:
        """Seconds since the epoch, on the clock of the timers."""
        return self._clock.time()

    def wait_for_messages(self) -> None:
        """Waits for a message of any subscription, but not for long: timers may fall due."""
        with self._changed:
            self._changed.wait_for(
                lambda: any(subscription.waiting() for subscription in self.subscriptions.values()),
                _IDLE_SECONDS,
            )

    def read_watermark(self) -> Timestamp:
        """No message to come is older. In whole seconds: each move is carried through all steps."""
        bound_us = min(subscription.read_until_us() for subscription in self.subscriptions.values())
        self._read_watermark = max(self._read_watermark, bound_us // MICROS)
        return Timestamp(self._read_watermark)

    def get_execution_context(self, applied_ptransform: AppliedPTransform) -> _ExecutionContext:
        return _ExecutionContext(
            self._watermark_manager.get_watermarks(applied_ptransform),
            self._transform_keyed_states[applied_ptransform],
        )

    def _initialize_keyed_states(
        self, root_transforms: Iterable[AppliedPTransform], value_to_consumers: dict[Any, Any]
    ) -> dict[AppliedPTransform, _KeyedStates]:
        steps: Iterator[AppliedPTransform] = itertools.chain(root_transforms, *value_to_consumers.values())
        return {step: _KeyedStates() for step in steps}


class _ParallelExecutor(executor._ExecutorServiceParallelExecutor):
    evaluation_context: _EvaluationContext

    def start(self, roots: Iterable[AppliedPTransform]) -> None:
        self.evaluation_context.start(self._fail)
        super().start(roots)

    def await_completion(self) -> None:
        try:
            if error := self.visible_updates.take().exception:
                raise error
        finally:
            # Beam stops nothing when the wait is interrupted.
            self._stop()

    def request_shutdown(self) -> None:
        self._stop()

    def _stop(self) -> None:
        self.executor_service.shutdown()
        for worker in self.executor_service.workers:
            worker.join(_STOP_SECONDS)
        self.evaluation_context.stop()

    def schedule_consumers(self, committed_bundle: Any) -> None:
        # A bundle carries elements and nothing else (watermarks travel by themselves), so an empty one
        # changes nothing; Beam would send it through every step downstream.
        if committed_bundle.has_elements():
            super().schedule_consumers(committed_bundle)

    def _fail(self, error: SubscriptionError) -> None:
        # As a step's exception ends the pipeline, but not tried four times with a stack trace each.
        self.visible_updates.offer(self._VisibleExecutorUpdate(error))


class StreamingResult(direct_runner.DirectPipelineResult):
    """A running stream."""

    def held(self) -> dict[str, Held]:
        """What is held of each subscription, by its path."""
        reads = self._evaluation_context.subscriptions
        return {step.transform.subscription: subscription.held() for step, subscription in reads.items()}

    def state_bytes(self) -> int:
        """The size of all state, encoded as it is held."""
        return sum(states.bytes for states in self._evaluation_context._transform_keyed_states.values())


class _Executor(executor.Executor):
    def __init__(self, *arguments: Any) -> None:
        self._executor = _ParallelExecutor(*arguments)


class StreamingDirectRunner(direct_runner.BundleBasedDirectRunner):
    """Runs a streaming pipeline that reads with ReadFromPubSubDirect, in this process.

    The result's `wait_until_finish` raises SubscriptionError when a subscription cannot be read.
    """

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> StreamingResult:
        """Starts the pipeline; it ends when it fails or is cancelled."""
        pipeline.replace_all(direct_runner._get_transform_overrides(options))
        graph = ConsumerTrackingPipelineVisitor()
        pipeline.visit(graph)
        context = _EvaluationContext(options, graph)
        run = _Executor(graph.value_to_consumers, _Registry(context), context)
        RuntimeValueProvider.set_runtime_options({})
        run.start(graph.root_transforms)
        return StreamingResult(run, context)

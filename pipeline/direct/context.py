"""The context of one pipeline run. Tied to Beam's version, like `pipeline.direct.runner`."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform
from apache_beam.runners.direct import evaluation_context
from apache_beam.runners.direct.bundle_factory import BundleFactory
from apache_beam.runners.direct.clock import RealClock
from apache_beam.runners.direct.consumer_tracking_pipeline_visitor import ConsumerTrackingPipelineVisitor
from apache_beam.runners.direct.direct_metrics import DirectMetrics
from apache_beam.runners.direct.util import TimerFiring
from apache_beam.runners.direct.watermark_manager import WatermarkManager
from apache_beam.utils.timestamp import Timestamp

from pipeline.direct.dofns import PreparedDoFn
from pipeline.direct.state import KeyedStates, StepContext
from pipeline.direct.subscription import ReadFromPubSubDirect, Subscription
from transforms.times import MICROS

# How often an idle pipeline checks its timers, and so their greatest delay.
_IDLE_SECONDS = 0.01


class _ExecutionContext(evaluation_context._ExecutionContext):
    def __init__(self, watermarks: Any, keyed_states: KeyedStates) -> None:
        super().__init__(watermarks, keyed_states)
        self._step_context: Any = StepContext(keyed_states)


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
    """Metrics that can be queried while the pipeline updates them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def _apply_operation(self, bundle: Any, updates: Any, op: Any) -> None:
        with self._lock:
            super()._apply_operation(bundle, updates, op)

    def query(self, filter: Any = None) -> Any:
        with self._lock:
            return super().query(filter)


class EvaluationContext(evaluation_context.EvaluationContext):
    """The context of one run; nothing of it outlives the run."""

    def __init__(self, options: PipelineOptions, graph: ConsumerTrackingPipelineVisitor) -> None:
        clock = RealClock()
        # Stacking saves memory, but compares every element with its predecessor.
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
        self.subscriptions: dict[AppliedPTransform, Subscription] = {}
        self.dofns: dict[AppliedPTransform, PreparedDoFn] = {}

    def start(self, fail: Callable[[Exception], None]) -> None:
        """Starts to read every subscription."""
        for step in self._root_transforms:
            if isinstance(step.transform, ReadFromPubSubDirect):
                self.subscriptions[step] = Subscription(
                    step.transform.source, step.transform.hold_seconds, self._changed, fail
                )
        for subscription in self.subscriptions.values():
            subscription.start()

    def stop(self) -> None:
        """Stops the subscriptions and tears the DoFns down; call it after the worker has ended."""
        for subscription in self.subscriptions.values():
            subscription.stop()
        for subscription in self.subscriptions.values():
            subscription.join()
        for dofn in self.dofns.values():
            dofn.runner.teardown()
        self.dofns.clear()

    def now(self) -> float:
        """Seconds since the epoch, on the clock of the timers."""
        return self._clock.time()

    def wait_for_messages(self) -> None:
        """Waits briefly for a message of any subscription; not longer, because timers may fall due."""
        with self._changed:
            self._changed.wait_for(
                lambda: any(subscription.waiting() for subscription in self.subscriptions.values()),
                _IDLE_SECONDS,
            )

    def read_watermark(self) -> Timestamp:
        """No later message is older. In whole seconds, because each advance passes through all steps."""
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
    ) -> dict[AppliedPTransform, KeyedStates]:
        steps: Iterator[AppliedPTransform] = itertools.chain(root_transforms, *value_to_consumers.values())
        return {step: KeyedStates() for step in steps}

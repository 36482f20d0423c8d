"""The streaming runner for one machine.

Beam's BundleBasedDirectRunner is the only runner that executes processing-time timers without a server. But
its Pub/Sub read pulls ten messages at a time, blocks all timers while a subscription is idle, and
acknowledges messages before they are processed. Its bookkeeping costs milliseconds per step and bundle, and
more with every key. This package replaces those parts, so it depends on the internals of one version of Beam;
a test checks that they have not changed.
"""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam

if not beam.__version__.startswith("2.77."):
    raise ImportError(
        f"Streaming on the DirectRunner is made for Apache Beam 2.77, and this is {beam.__version__}:"
        " install apache-beam[gcp]==2.77.0."
    )

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.pipeline import AppliedPTransform
from apache_beam.runners.direct import direct_runner, executor
from apache_beam.runners.direct.consumer_tracking_pipeline_visitor import ConsumerTrackingPipelineVisitor

from pipeline.direct.context import EvaluationContext
from pipeline.direct.evaluation import Registry
from pipeline.direct.subscription import Unacknowledged

_STOP_SECONDS = 5.0


class _ParallelExecutor(executor._ExecutorServiceParallelExecutor):
    evaluation_context: EvaluationContext

    def start(self, roots: Iterable[AppliedPTransform]) -> None:
        self.evaluation_context.start(self._fail)
        super().start(roots)

    def await_completion(self) -> None:
        try:
            if error := self.visible_updates.take().exception:
                raise error
        finally:
            # When the wait is interrupted, Beam stops nothing.
            self._stop()

    def request_shutdown(self) -> None:
        self._stop()

    def _stop(self) -> None:
        self.executor_service.shutdown()
        for worker in self.executor_service.workers:
            worker.join(_STOP_SECONDS)
        self.evaluation_context.stop()

    def schedule_consumers(self, committed_bundle: Any) -> None:
        # An empty bundle has no effect, because watermarks travel separately; Beam would still send it
        # through every step downstream.
        if committed_bundle.has_elements():
            super().schedule_consumers(committed_bundle)

    def _fail(self, error: Exception) -> None:
        # Ends the pipeline as a step's exception does, but without four attempts and their stack traces.
        self.visible_updates.offer(self._VisibleExecutorUpdate(error))


class StreamingResult(direct_runner.DirectPipelineResult):
    """A running stream."""

    def unacknowledged(self) -> dict[str, Unacknowledged]:
        """What is not acknowledged yet, by the subscription's path."""
        reads = self._evaluation_context.subscriptions
        return {
            step.transform.source.path: subscription.unacknowledged() for step, subscription in reads.items()
        }

    def state_bytes(self) -> int:
        """The size of all encoded state, in bytes."""
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
        context = EvaluationContext(options, graph)
        run = _Executor(graph.value_to_consumers, Registry(context), context)
        RuntimeValueProvider.set_runtime_options({})
        run.start(graph.root_transforms)
        return StreamingResult(run, context)

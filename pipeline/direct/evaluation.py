"""Evaluates bundles: reads and DoFns. Tied to Beam's version, like `pipeline.direct.runner`."""

from typing import Any

import apache_beam as beam
from apache_beam.pipeline import AppliedPTransform
from apache_beam.pvalue import PBegin
from apache_beam.runners.direct import transform_evaluator
from apache_beam.runners.direct.util import TimerFiring, TransformResult
from apache_beam.runners.worker.statesampler import get_current_tracker
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

from pipeline.direct.context import EvaluationContext
from pipeline.direct.dofns import PreparedDoFn
from pipeline.direct.subscription import ReadFromPubSubDirect


class _ReadEvaluator(transform_evaluator._TransformEvaluator):
    """Hands over the waiting messages of a subscription when the runner asks for more."""

    _evaluation_context: EvaluationContext

    def process_element(self, element: Any) -> None:
        """The element only makes the runner come back here."""

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
        # As Beam's own roots do, but with an element: Beam never removes empty bundles.
        again = context.create_bundle(PBegin(output.pipeline))
        again.add(GlobalWindows.windowed_value(None, timestamp=watermark))
        return TransformResult(self, bundles, [again], None, {None: watermark})


class _DoFnEvaluator(transform_evaluator._ParDoEvaluator):
    """Evaluates a bundle with the step's prepared DoFn."""

    _evaluation_context: EvaluationContext

    def start_bundle(self) -> None:
        # Put back at the end of the bundle, so that a DoFn that has raised is not reused.
        prepared = self._evaluation_context.dofns.pop(self._applied_ptransform, None)
        self._prepared = prepared or PreparedDoFn(self._applied_ptransform, self._side_inputs)
        self.runner = self._prepared.runner
        self.key_coder = self._prepared.key_coder
        self.user_timer_map = self._prepared.timers
        for output in self._prepared.outputs:
            output.bundle = self._evaluation_context.create_bundle(output.pcollection)
        if self._prepared.state:
            self._prepared.state.step_context = self._step_context
        _measured().reset()
        self.runner.start()

    def process_timer_wrapper(self, timer_firing: TimerFiring) -> None:
        # An earlier bundle may have moved or cleared the timer; Beam would clear the moved one.
        timers = self._step_context.get_keyed_state(timer_firing.encoded_key).timers
        name = (timer_firing.name, timer_firing.time_domain, timer_firing.dynamic_timer_tag)
        if timers.get(timer_firing.window, {}).get(name) == timer_firing.timestamp:
            super().process_timer_wrapper(timer_firing)

    def finish_bundle(self) -> TransformResult:
        self.runner.finish()
        if self._prepared.state:
            self._prepared.state.commit()
            self._prepared.state.reset()
        if self._side_inputs:  # their values are bound to the DoFn
            self.runner.teardown()
        else:
            self._evaluation_context.dofns[self._applied_ptransform] = self._prepared
        # The worker always counts in the container of the step's first bundle, while the runner commits the
        # container of each bundle, so it would count only the first.
        measured = _measured()
        self._evaluation_context.metrics().commit_logical(None, measured.get_cumulative())
        measured.reset()
        bundles = [output.bundle for output in self._prepared.outputs]
        return TransformResult(self, bundles, [], None, None)


def _measured() -> Any:
    """The metrics container of the running step."""
    return get_current_tracker().current_state().metrics_container


class Registry(transform_evaluator.TransformEvaluatorRegistry):
    """Beam's evaluators, with our own for reads and DoFns."""

    def __init__(self, context: EvaluationContext) -> None:
        super().__init__(context)
        self._evaluators[ReadFromPubSubDirect] = _ReadEvaluator
        self._evaluators[beam.ParDo] = _DoFnEvaluator

    def should_execute_serially(self, applied_ptransform: AppliedPTransform) -> bool:
        # The single worker thread takes bundles in order. Beam's queue for serial steps reverses that order,
        # and inspects the DoFn for every bundle to find serial steps.
        return False

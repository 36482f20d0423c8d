"""DoFns that are set up once per run. Tied to Beam's version, like `pipeline.direct.runner`."""

from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.internal import pickler
from apache_beam.pipeline import AppliedPTransform
from apache_beam.pvalue import PCollection
from apache_beam.runners.common import DoFnRunner, DoFnState, Receiver
from apache_beam.runners.direct import transform_evaluator
from apache_beam.runners.direct.direct_userstate import DirectUserStateContext
from apache_beam.utils import counters


class _Output(Receiver):
    """One output of a step; adds elements to the current bundle."""

    def __init__(self, step: AppliedPTransform, tag: Any) -> None:
        self.pcollection: PCollection[Any] = PCollection(step.inputs[0].pipeline, tag=tag)
        self.pcollection.producer = step
        self.bundle: Any = None

    def receive(self, windowed_value: Any) -> None:
        self.bundle.add(windowed_value)


class PreparedDoFn:
    """A step's DoFn, set up once. Beam pickles and inspects it for every bundle."""

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

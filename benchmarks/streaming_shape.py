"""The streaming graph in Beam's SDK harness, as a streaming runner's worker would execute it.

The graph is built as for a stream: one Pub/Sub message per element, with attributes, no chunks from the
source, keyed state and timers, batches of rows. It runs as on a runner that sends each key to its worker:
every step with state begins a new stage, so its input has been encoded.

Four things are replaced. The read yields messages from memory. Whatever leaves by HTTP is only encoded.
Nothing is known about patients at the start. Processing-time timers are set by the harness and dropped by the
runner, because only waiting would let them fire; the last batches come at the end of the window.

Each stage is one bundle. Where collections are flattened, all elements of one come before the next, in an
order that differs from run to run, so some events are withheld in one run and not in another.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import apache_beam as beam
import orjson
from apache_beam.io.gcp import pubsub
from apache_beam.pipeline import PTransformOverride
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import translations, worker_handlers
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult
from google.protobuf.timestamp_pb2 import Timestamp
from google.pubsub_v1.types import PubsubMessage

from pipeline.options import RehabOptions, parse_options
from pipeline.sinks.tables import WriteBatch
from transforms.rows import unpack_row
from transforms.steps import gathering as grouping
from transforms.steps.batching import newest_versions

# The most messages that a worker gathers: one second's worth at 1,000 events/s. Without a limit, this runner
# makes one bundle of everything.
BUNDLE = 1000

# The harness runs in this process.
_MESSAGES: list[bytes] = []
_WRITTEN: dict[str, list[bytes]] = {}


def load(events_file: Path) -> None:
    """Makes messages from a file's lines, encoded as a runner hands them to the SDK."""
    _MESSAGES.clear()
    published = Timestamp()
    published.GetCurrentTime()
    for number, line in enumerate(events_file.read_bytes().splitlines()):
        try:
            content = orjson.loads(line)
        except orjson.JSONDecodeError:
            content = None
        names = ("event_id", "kind") if isinstance(content, dict) else ()
        message = PubsubMessage.pb()(
            data=line,
            attributes={name: str(content[name]) for name in names if name in content},
            message_id=str(number),
            publish_time=published,
        )
        _MESSAGES.append(message.SerializeToString())


def run(naive: bool = False, bundle: int = BUNDLE) -> PipelineResult:
    """Runs the graph, or the naive one, over the loaded messages, gathering at most `bundle` of them."""
    _WRITTEN.clear()
    project = "projects/rehab-local"
    options = parse_options(
        [
            "--runner=FnApiRunner",
            f"--primary_subscription={project}/subscriptions/rehab-primary",
            f"--nudge_topic={project}/topics/rehab-nudges",
            "--dataset=rehab-local.rehab_tracking",
            "--nudge_max_age_hours=0",
        ]
    )
    pipeline = beam.Pipeline(runner=_Harness(), options=options)
    (_build_naive if naive else _build)(pipeline, options)
    pipeline.replace_all(
        [
            _Replace(lambda t: isinstance(getattr(t, "source", None), pubsub._PubSubSource), _Read),
            _Replace(lambda t: isinstance(getattr(t, "fn", None), pubsub._PubSubWriteDoFn), _publish),
            _Replace(lambda t: isinstance(getattr(t, "fn", None), WriteBatch), _write),
        ]
    )
    # Without a state cache, like all other runs here: for it, this runner would measure the size of each
    # state, which takes most of the time.
    without_cache = patch.object(worker_handlers, "STATE_CACHE_SIZE_MB", 0)
    with without_cache, patch.object(grouping, "MAX_GATHERED", bundle):
        result = pipeline.run()
        result.wait_until_finish()
    return result


def _build(pipeline: beam.Pipeline, options: RehabOptions) -> None:
    # Not imported above, because it registers coders, which the naive graph must not use.
    from pipeline import graph

    with patch.object(graph, "KnownPatients", lambda *_: dict):
        graph.build(pipeline, options)


def _build_naive(pipeline: beam.Pipeline, options: RehabOptions) -> None:
    from benchmarks import naive

    naive.build(pipeline, options)


def written() -> dict[str, list[bytes]]:
    """The output: bodies of rows by table, and of nudges."""
    nudges = [PubsubMessage.pb().FromString(message).data for message in _WRITTEN["nudges"]]
    return _WRITTEN | {"nudges": nudges}


class _Harness(FnApiRunner):
    def create_stages(self, pipeline_proto: Any) -> Any:
        # Also necessary because this runner fires the timers of only one step where two steps of a stage have
        # timers of the same name (https://github.com/apache/beam/issues/21995).
        fuse = translations.greedily_fuse

        def fuse_up_to_state(stages: Any, context: Any) -> Any:
            return fuse(translations.annotate_stateful_dofns_as_roots(stages, context), context)

        with patch.object(translations, "greedily_fuse", fuse_up_to_state):
            return super().create_stages(pipeline_proto)

    @staticmethod
    def _collect_written_timers(bundle: Any) -> Any:
        for (transform, _), (buffer, domain) in bundle.stage_timer_outputs.items():
            if domain == beam_runner_api_pb2.TimeDomain.PROCESSING_TIME:
                bundle.get_buffer(buffer, transform).clear()
        return FnApiRunner._collect_written_timers(bundle)


class _Replace(PTransformOverride):
    def __init__(self, matches: Callable[[Any], bool], replacement: Callable[[Any], Any]) -> None:
        self._matches = matches
        self._replacement = replacement

    def matches(self, applied_ptransform: Any) -> bool:
        return self._matches(applied_ptransform.transform)

    def get_replacement_transform_for_applied_ptransform(self, applied_ptransform: Any) -> Any:
        return self._replacement(applied_ptransform.transform)


class _Read(beam.PTransform[Any, Any]):
    def __init__(self, _replaced: Any) -> None:
        super().__init__()

    def expand(self, begin: Any) -> Any:
        return begin | beam.Impulse() | beam.ParDo(_Messages()).with_output_types(bytes)


class _Messages(beam.DoFn):
    def process(self, _impulse: bytes) -> list[bytes]:
        return _MESSAGES


def _publish(_replaced: Any) -> Any:
    return beam.ParDo(_Publish())


def _write(replaced: Any) -> Any:
    return beam.ParDo(_Write(replaced.fn._table)).with_output_types(Any)


class _Publish(beam.DoFn):
    def process(self, message: Any) -> None:
        _WRITTEN.setdefault("nudges", []).append(message)


class _Write(beam.DoFn):
    """Encodes the body of the request that WriteBatch would make."""

    def __init__(self, table: str) -> None:
        self._table = table

    def process(self, batch: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        rows = newest_versions(map(unpack_row, batch[1]))
        orjson.dumps({"rows": [{"insertId": row.key, "json": orjson.Fragment(row.body)} for row in rows]})
        _WRITTEN.setdefault(self._table, []).extend(row.body for row in rows)
        yield from ()

"""The DirectRunner's module without a server: its rules, and the parts of Beam that it rests on."""

import hashlib
import logging
import runpy
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.direct.evaluation_context import DirectUnmergedState
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.trigger import _ReadModifyWriteStateTag
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from google.api_core.exceptions import InvalidArgument, NotFound, PermissionDenied
from hypothesis import given
from hypothesis import strategies as st

import pipeline.direct.runner
from pipeline.direct.runner import StreamingDirectRunner
from pipeline.direct.state import DueKeys, KeyedStates
from pipeline.direct.subscription import HoldLedger
from pipeline.sources.pubsub import _explanation

# What of Beam 2.77 the module was written against. When Beam is updated, read what changed in these
# files, adapt the module, run its integration tests, measure again; then state the new digests.
BEAM_DIGESTS = {
    "runners.common": "2574704777277e42",
    "runners.direct.bundle_factory": "1025157c6074ed35",
    "runners.direct.consumer_tracking_pipeline_visitor": "91fb7a14cfb54ea0",
    "runners.direct.direct_metrics": "023fc92fab1ed379",
    "runners.direct.direct_runner": "d71de01b2ed39479",
    "runners.direct.direct_userstate": "f467d5a08d9b93e7",
    "runners.direct.evaluation_context": "57757d95a787535b",
    "runners.direct.executor": "008e5f603b7764a7",
    "runners.direct.transform_evaluator": "0b5870d198433f31",
    "runners.direct.util": "3cde744f3a2068a4",
    "runners.direct.watermark_manager": "19973ab0f21c17dc",
    "runners.worker.statesampler": "4e440fd247da9c84",
    "transforms.trigger": "f88387dc62680671",
    "transforms.userstate": "8df5dfcb8c968d4d",
}

LOG: dict[str, list[Any]] = {}


@pytest.fixture
def log() -> Iterator[str]:
    name = uuid.uuid4().hex
    LOG[name] = []
    yield name
    del LOG[name]


@pytest.mark.parametrize("module", BEAM_DIGESTS)
def test_beam_is_what_the_module_was_written_against(module: str) -> None:
    # The source, also where Beam has compiled it.
    path = Path(beam.__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == BEAM_DIGESTS[module]


def test_another_beam_is_refused_with_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "__version__", "2.78.0")
    with pytest.raises(ImportError) as raised:
        runpy.run_path(pipeline.direct.runner.__file__)
    assert str(raised.value) == (
        "Streaming on the DirectRunner is made for Apache Beam 2.77, and this is 2.78.0:"
        " install apache-beam[gcp]==2.77.0."
    )


def test_nothing_is_acknowledged_before_two_intervals_that_each_ended_before_a_turn() -> None:
    ledger = HoldLedger(1.0)
    assert ledger.turn(0.0) == []
    ledger.add(["a", "b"])
    assert ledger.turn(10.0) == []  # in the first buffer from now on
    assert ledger.turn(10.9) == []
    assert ledger.turn(11.0) == []  # a timer due at 11.0 may not have fired before this turn
    assert ledger.turn(11.1) == []  # but before this one: in the second buffer from now on
    assert ledger.turn(12.0) == []
    assert ledger.turn(12.2) == []
    assert ledger.pending() == ["a", "b"]
    assert ledger.turn(12.3) == ["a", "b"]
    assert ledger.pending() == []


def test_a_long_pause_is_not_two_intervals() -> None:
    ledger = HoldLedger(1.0)
    ledger.add(["a"])
    assert [ledger.turn(now) for now in (0.0, 100.0, 200.0, 300.0)] == [[], [], [], []]
    assert ledger.turn(400.0) == ["a"]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), max_size=60))
def test_every_id_is_acknowledged_at_the_first_turn_that_may(turns: list[tuple[int, int]]) -> None:
    ledger = HoldLedger(10)
    now = 0
    asked: list[int] = []
    handed_over_at: dict[str, int] = {}
    acknowledged_at: dict[str, int] = {}
    for turn, (pause, count) in enumerate(turns + [(10, 0)] * 8):
        now += pause
        asked.append(now)
        acknowledged_at.update(dict.fromkeys(ledger.turn(now), turn))
        ids = [f"{turn}-{number}" for number in range(count)]
        handed_over_at.update(dict.fromkeys(ids, turn))
        ledger.add(ids)

    def end_of_interval(start: int) -> int:
        return next(turn + 1 for turn in range(start, len(asked)) if asked[turn] >= asked[start] + 10)

    assert acknowledged_at == {
        name: end_of_interval(end_of_interval(turn + 1)) for name, turn in handed_over_at.items()
    }


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 3))))
def test_due_keys_are_those_with_a_timer_that_is_due(steps: list[tuple[str, int, int]]) -> None:
    keys, now = DueKeys(), 0
    timers: dict[bytes | None, float] = {}
    for name, delay, pause in steps:
        key = name.encode()
        timers[key] = now + delay  # sets it, or puts it off, or brings it forward
        keys.add(key, timers[key])
        now += pause
        popped = keys.pop(now)
        assert {key for key in popped if timers[key] <= now} == {
            key for key, due in timers.items() if due <= now
        }
        for again in popped:  # as the states do: not due yet, or not delivered yet
            keys.add(again, timers[again])


def test_a_key_without_state_and_timers_is_forgotten() -> None:
    states = KeyedStates()
    state, tag = DirectUnmergedState(), _ReadModifyWriteStateTag("tag")
    state.add_state(GlobalWindow(), tag, [b"value"])
    states[b"key"] = state
    assert list(states) == [b"key"]
    state.clear_state(GlobalWindow(), tag)
    state.set_timer(GlobalWindow(), "name", TimeDomain.REAL_TIME, Timestamp(5))
    states[b"key"] = state
    assert [firing.encoded_key for firing in states.due(MIN_TIMESTAMP, 5.0)] == [b"key"]
    state.clear_timer(GlobalWindow(), "name", TimeDomain.REAL_TIME)
    assert not state.get_state(GlobalWindow(), tag)  # reading leaves an empty value behind
    states[b"key"] = state
    assert not states
    assert not states.due(MIN_TIMESTAMP, 5.0)


def test_the_size_of_state_is_that_of_its_values() -> None:
    states = KeyedStates()
    for key, value in ((b"a", b"value"), (b"b", b"other"), (b"a", b"longer value")):
        state = DirectUnmergedState()
        state.add_state(GlobalWindow(), _ReadModifyWriteStateTag("tag"), [value])
        states[key] = state
    assert states.bytes == len(b"longer value") + len(b"other")
    for key in (b"a", b"b"):
        states[key] = DirectUnmergedState()
    assert states.bytes == 0


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            NotFound("Resource not found (resource=s)."),
            "The subscription p does not exist: create it with `python -m pipeline.provision`.",
        ),
        (
            PermissionDenied("User not authorized.\nSee the documentation."),
            "The subscription p may not be read with these credentials: they lack a role for it.",
        ),
        (
            InvalidArgument("Invalid name.\nSee the documentation."),
            "The subscription p cannot be read: 400 Invalid name.",
        ),
    ],
)
def test_what_ends_the_pipeline_is_explained_in_one_sentence(error: Exception, sentence: str) -> None:
    assert _explanation("p", error) == sentence


def run(build: Any) -> None:
    with beam.Pipeline(runner=StreamingDirectRunner(), options=PipelineOptions(["--streaming"])) as root:
        build(root)


class Lifecycle(beam.DoFn):
    """Fails at the first attempt with the element `bad`."""

    def __init__(self, log: str) -> None:
        self._log = log

    def setup(self) -> None:
        LOG[self._log].append("setup")
        self._failed = False

    def process(self, element: str) -> Iterator[str]:
        if element == "bad" and "bad" not in LOG[self._log]:
            LOG[self._log].append("bad")
            raise ValueError("once")
        LOG[self._log].append(element)
        yield element

    def teardown(self) -> None:
        LOG[self._log].append("teardown")


def elements(root: beam.Pipeline, *parts: list[str]) -> Any:
    """Every part is a bundle of its own."""
    created = [root | f"Create {number}" >> beam.Create(part) for number, part in enumerate(parts)]
    return created | beam.Flatten()


def test_a_dofn_is_set_up_once_for_all_bundles(log: str) -> None:
    run(lambda root: elements(root, ["a"], ["b"], ["c"]) | beam.ParDo(Lifecycle(log)))
    assert LOG[log][0] == "setup"
    assert sorted(LOG[log][1:-1]) == ["a", "b", "c"]
    assert LOG[log][-1] == "teardown"


def test_a_dofn_that_has_raised_is_not_used_again(log: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL):
        run(lambda root: elements(root, ["bad"]) | beam.ParDo(Lifecycle(log)))
    assert LOG[log] == ["setup", "bad", "setup", "bad", "teardown"]


class Bundles(beam.DoFn):
    def __init__(self, log: str) -> None:
        self._log = log

    def process(self, element: Any) -> None:
        LOG[self._log].append(element)

    def finish_bundle(self) -> None:
        LOG[self._log].append("end")


def test_a_bundle_without_elements_is_not_sent_on(log: str) -> None:
    run(lambda root: elements(root, ["a"], ["b"]) | beam.Filter(lambda _: False) | beam.ParDo(Bundles(log)))
    assert LOG[log] == []


def test_a_tag_that_nobody_reads_is_ignored(log: str) -> None:
    run(
        lambda root: (
            elements(root, ["a"])
            | beam.FlatMap(lambda element: [element, beam.pvalue.TaggedOutput("other", "b")])
            | beam.ParDo(Bundles(log))
        )
    )
    assert LOG[log] == ["a", "end"]


def test_a_side_input_is_read(log: str) -> None:
    run(
        lambda root: (
            elements(root, ["a"], ["b"])
            | beam.Map(
                lambda element, other: element + other,
                other=beam.pvalue.AsSingleton(root | "Other" >> beam.Create(["!"])),
            )
            | beam.ParDo(Bundles(log))
        )
    )
    assert sorted(LOG[log]) == ["a!", "b!", "end", "end"]


class Count(beam.DoFn):
    def process(self, element: str) -> None:
        Metrics.counter("test", "elements").inc()

    def finish_bundle(self) -> None:
        Metrics.counter("test", "bundles").inc()


def test_metrics_of_all_bundles_add_up() -> None:
    root = beam.Pipeline(runner=StreamingDirectRunner(), options=PipelineOptions(["--streaming"]))
    elements(root, ["a"], ["b", "c"], ["d"]) | beam.ParDo(Count())
    result = root.run()
    result.wait_until_finish()
    committed = {
        counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]
    }
    assert committed == {"elements": 4, "bundles": 3}


class Remember(beam.DoFn):
    STATE = ReadModifyWriteStateSpec("state", BytesCoder())
    TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)

    def __init__(self, log: str) -> None:
        self._log = log

    def process(
        self,
        element: tuple[str, str],
        state: Any = beam.DoFn.StateParam(STATE),
        timer: Any = beam.DoFn.TimerParam(TIMER),
    ) -> None:
        state.write((state.read() or b"") + element[1].encode())
        timer.set(Timestamp.now() + 1)

    @on_timer(TIMER)
    def fire(self, key: Any = beam.DoFn.KeyParam, state: Any = beam.DoFn.StateParam(STATE)) -> None:
        LOG[self._log].append((key, bytes(sorted(state.read()))))


def test_state_is_kept_by_key_from_bundle_to_bundle_and_timers_fire_once(log: str) -> None:
    run(
        lambda root: (
            elements(root, ["k1", "l1"], ["k2", "l2"], ["k3"])
            | beam.Map(lambda element: (element[0], element[1])).with_output_types(tuple[str, str])
            | beam.ParDo(Remember(log))
        )
    )
    assert sorted(LOG[log]) == [("k", b"123"), ("l", b"12")]

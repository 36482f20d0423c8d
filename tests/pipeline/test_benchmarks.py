"""What the benchmarks promise, but for the figures: that they measure the same work, done in full."""

import importlib.util
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import orjson
import pytest

from benchmarks import streaming_shape
from benchmarks.growth import Cell, steep
from benchmarks.measure import account_of, digest
from benchmarks.parts import PARTS, shares
from benchmarks.profile import Function
from benchmarks.throughput import differing, measure
from benchmarks.workload import END, events_file
from local.simulation import Scenario, simulate
from tests.support.pages import ROOT
from transforms.deduplication import SeenIds
from transforms.projections.quality import Quality
from transforms.projections.state import PatientState
from transforms.steps.batching import Batch
from transforms.steps.chunks import EventChunkCoder
from transforms.steps.routing import routed
from transforms.steps.validation import validate
from transforms.times import to_micros

TABLES = ("adherence", "consents", "quality", "work_queue", "dead_letters")


def decoded(line: bytes) -> list[Any]:
    """The events in a line, none if it is not JSON."""
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError:
        return []
    return content if isinstance(content, list) else [content]


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Events of which nothing depends on the order of their kinds: none late, no consent that changes."""
    path = tmp_path_factory.mktemp("benchmarks") / "events.jsonl"
    scenario = Scenario(400, 5, 1, to_micros(END), late=0)
    lines = [emission.payload for emission in simulate(scenario) if emission.payload]
    granted: set[str] = set()
    for line in list(lines):
        for event in decoded(line):
            if isinstance(event, dict) and event.get("kind") == "consent":
                patient = event.get("subject_id") or event["patient_id"]
                if patient in granted:
                    lines.remove(line)
                granted.add(patient)
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.fixture(scope="module")
def plain(in_order: Path) -> dict[str, Any]:
    """What the plain loop makes of them."""
    return measure("bare", in_order, 1)


# --- Every way does the same work


@pytest.mark.parametrize("way", ["bounded", "streaming", "naive"])
def test_a_way_leaves_the_rows_of_the_plain_loop(in_order: Path, plain: dict[str, Any], way: str) -> None:
    measured = measure(way, in_order, 1)
    assert {table: measured["results"][table] for table in TABLES} == {
        table: plain["results"][table] for table in TABLES
    }
    assert measured["account"] == plain["account"]


def streamed(events: Path, *, naive: bool) -> tuple[Counter[str], dict[str, str]]:
    streaming_shape.load(events)
    result = streaming_shape.run(naive, bundle=1)
    return account_of(result), digest(streaming_shape.written())


def test_of_events_one_by_one_the_naive_graph_says_what_the_streams_graph_says(in_order: Path) -> None:
    assert streamed(in_order, naive=True) == streamed(in_order, naive=False)


def test_of_a_stream_only_what_depends_on_no_order_has_to_be_that_of_the_plain_loop() -> None:
    plain = {"results": {"quality": "1 a", "consents": "1 b", "dead_letters": "1 c"}}
    other = {"results": {"quality": "2 a", "consents": "2 b", "dead_letters": "1 c"}}
    runs = {"bare": [plain], "bounded": [plain, other], "streaming": [other], "naive": [plain]}
    assert differing(runs) == ["bounded: quality", "bounded: consents", "streaming: consents"]


# --- Where the time goes


def test_each_part_of_the_streams_time_is_of_functions_that_run(in_order: Path) -> None:
    called: set[CodeType] = set()

    def note(frame: FrameType, _event: str, _argument: object) -> None:
        called.add(frame.f_code)

    streaming_shape.load(in_order)
    sys.setprofile(note)
    try:
        streaming_shape.run()
    finally:
        sys.setprofile(None)
    functions = [str(Function.of(code)) for code in called]
    assert [part.name for part in PARTS if not any(map(part.functions.search, functions))] == []


def test_a_stack_belongs_to_the_first_part_that_it_passes_through() -> None:
    worker = Function("apache_beam/runners/worker/sdk_worker.py", "SdkWorker.process_bundle")
    step = Function("transforms/steps/streaming.py", "StreamingProjectFn.process")
    decoding = Function("transforms/projections/state.py", "PatientState.decode")
    library = Function("some_package/module.py", "function")
    stacks = Counter(
        {
            (library, decoding, step, worker): 1,
            (step, worker): 2,
            (library, worker): 5,
            (decoding,): 7,
        }
    )
    assert {name: share for name, share in shares(stacks).items() if share} == {
        "state: decoded, encoded": 12.5,
        "this project's steps": 25.0,
        "Beam's steps and harness": 62.5,
    }


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (Batch.expand, "output"),
        (PatientState.decode, "state: decoded, encoded"),
        (Quality.apply, "rules: projections"),
        (validate, "rules: validation"),
        (SeenIds.is_new, "rules: deduplication"),
        (EventChunkCoder.encode, "events: packed, encoded"),
        (routed, "this project's steps"),
    ],
)
def test_a_function_of_this_project_is_in_its_part(function: FunctionType, part: str) -> None:
    text = str(Function.of(function.__code__))
    assert next(each.name for each in PARTS if each.functions.search(text)) == part


# --- Programs


def test_every_module_that_a_benchmark_runs_exists() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    modules = {name for source in sources for name in re.findall(r'(?:"-m", |\bmodule\()"([\w.]+)"', source)}
    assert {"pipeline.main", "local.simulate", "ingest"} <= modules
    assert not [name for name in modules if importlib.util.find_spec(name) is None]


# --- Growth


def cell(events: int, cpu_seconds: float, peak_mib: int, patients: int = 100) -> Cell:
    return Cell(events, patients, 1, cpu_seconds, cpu_seconds, peak_mib)


def test_what_grows_linearly_is_not_steep() -> None:
    assert steep([cell(1000, 0.1, 200), cell(10_000, 1, 300), cell(100_000, 10, 1200)]) == []


def test_what_grows_with_the_square_is_steep() -> None:
    found = steep([cell(1000, 0.01, 200), cell(10_000, 1, 300), cell(100_000, 100, 10_200)])
    assert found == [
        "cpu_seconds 1.0 → 100.0: 10,000 events of 100 patients in 1 process "
        "→ 100,000 events of 100 patients in 1 process",
        "memory_mib 100.0 → 10,000.0: 10,000 events of 100 patients in 1 process "
        "→ 100,000 events of 100 patients in 1 process",
    ]


def test_growth_with_patients_is_looked_at_by_itself() -> None:
    cells = [cell(10_000, 1, 200, patients=10), cell(10_000, 20, 200, patients=100)]
    assert [line.partition(":")[0] for line in steep(cells)] == ["cpu_seconds 1.0 → 20.0"]
    assert steep([cells[0], cell(100_000, 20, 200, patients=100)]) == []


def test_noise_is_not_growth() -> None:
    assert steep([cell(1000, -0.1, 200), cell(10_000, 0.4, 210), cell(100_000, 6, 400)]) == []


# --- Events


def patients_in(path: Path) -> set[str]:
    events = (event for line in path.read_bytes().splitlines() for event in decoded(line))
    return {
        event.get("subject_id") or event.get("patient_id") or ""
        for event in events
        if isinstance(event, dict)
    }


def test_there_are_as_many_patients_as_asked_for_as_far_as_events_reach(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = (10, 100, 1000, 1_000_000)
    numbers = [len(patients_in(events_file(2000, patients))) for patients in asked]
    # Some of the patients among whom events are spread get none.
    assert numbers == pytest.approx([10, 100, 740, 1860], rel=0.15)


def test_equal_numbers_give_equal_events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        contents.append(events_file(500, 400).read_bytes())
    assert contents[0] == contents[1]

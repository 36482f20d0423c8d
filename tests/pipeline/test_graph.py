"""The graph as a whole: bounded runs over files from end to end."""

import base64
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import apache_beam as beam
import orjson
import pytest
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that, equal_to

from pipeline.graph import build
from pipeline.main import main
from pipeline.options import parse_options
from tests.support.fuzzing import fuzzed
from tests.support.oracle import (
    Arrival,
    Options,
    assert_nudges_equal,
    assert_rows_equal,
    current_rows,
    expected,
)
from tests.support.strategies import arrival_orders, random_arrivals
from transforms.dead_letters import REASONS, DeadLetter
from transforms.events import KINDS
from transforms.message import Message
from transforms.steps.chunks import EventChunk
from transforms.steps.tagging import tagged
from transforms.steps.validation import DEAD_LETTERS, OUTPUTS, Validate

TABLES = ("adherence", "consents", "quality", "work_queue", "dead_letters")
HISTORY = ("version", "updated_at", "source_event_id")


# --- Bounded runs


class Ran:
    """What a bounded run left behind."""

    def __init__(self, directory: Path) -> None:
        self.rows = {table: self._lines(directory, table) for table in TABLES}
        self.nudges = self._lines(directory, "nudges")
        metrics = json.loads((directory / "metrics.json").read_bytes())
        self.counters: dict[str, int] = metrics["counters"]

    @staticmethod
    def _lines(directory: Path, name: str) -> list[dict[str, Any]]:
        files = list((directory / "out").glob(f"{name}*.jsonl"))
        assert files
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def current(self, table: str) -> list[dict[str, Any]]:
        return current_rows(self.rows[table], table, self.rows["consents"])

    def count(self, name: str) -> int:
        """Of counters by kind or reason, their sum."""
        full = f"rehab_tracking.broadway.event.{name}"
        return sum(n for key, n in self.counters.items() if key == full or key.startswith(f"{full}."))


def run(
    directory: Path, files: dict[str, Iterable[bytes]], *arguments: str, patterns: str = "*.jsonl"
) -> Ran:
    directory.mkdir(exist_ok=True)
    for name, lines in files.items():
        (directory / name).write_bytes(b"".join(line + b"\n" for line in lines))
    status = main(
        [
            "--input_files=" + ",".join(f"{directory}/{pattern}" for pattern in patterns.split(",")),
            f"--output_dir={directory}/out",
            f"--metrics_file={directory}/metrics.json",
            *arguments,
        ]
    )
    assert status == 0
    return Ran(directory)


def lines_of(arrivals: Iterable[Arrival]) -> list[bytes]:
    return [orjson.dumps(arrival.envelope) for arrival in arrivals]


def check(ran: Ran, arrivals: Sequence[Arrival], **options: Any) -> None:
    """Rows and nudges against the independent calculation."""
    wanted = expected(arrivals, Options(**options))
    for table in ("adherence", "quality", "work_queue"):
        assert_rows_equal(ran.current(table), getattr(wanted, table), table)
    assert ran.count("withheld") == len(wanted.withheld)


@pytest.mark.parametrize("consent", ["enforce", "require", "off"])
def test_a_bounded_run_equals_the_independent_calculation(tmp_path: Path, consent: Any) -> None:
    rng = Random(f"bounded {consent}")
    arrivals = arrival_orders(random_arrivals(rng), rng)
    ran = run(
        tmp_path, {"events.jsonl": lines_of(arrivals)}, f"--consent={consent}", "--nudge_max_age_hours=0"
    )
    check(ran, arrivals, consent=consent)
    assert ran.rows["dead_letters"] == []
    ids = {arrival.envelope["event_id"] for arrival in arrivals}
    assert ran.count("duplicate") == len(arrivals) - len(ids) > 0
    assert ran.count("processed") + ran.count("withheld") == len(ids)


def test_nudges_of_a_bounded_run(tmp_path: Path) -> None:
    arrivals = random_arrivals(Random("nudges"), consents="none")
    ran = run(tmp_path, {"events.jsonl": lines_of(arrivals)}, "--nudge_max_age_hours=0")
    check(ran, arrivals)
    assert_nudges_equal(ran.nudges, expected(arrivals, Options()).nudges)
    generated = {name: n for name, n in ran.counters.items() if name.startswith("rehab_tracking.policy.")}
    by_type = Counter(
        f"rehab_tracking.policy.{nudge['kind']}.generated.{nudge['type']}" for nudge in ran.nudges
    )
    assert generated == by_type
    assert len({nudge["nudge_id"] for nudge in ran.nudges}) == len(ran.nudges)


def test_old_events_emit_no_nudge_by_default(tmp_path: Path) -> None:
    arrivals = random_arrivals(Random("nudges"), consents="none")
    ran = run(tmp_path, {"events.jsonl": lines_of(arrivals)})
    assert ran.nudges == []
    check(ran, arrivals)


def test_lines_arrays_blanks_globs_and_dead_letters(tmp_path: Path) -> None:
    def alert(event_id: str) -> bytes:
        return orjson.dumps(
            {
                "event_id": event_id,
                "kind": "alert",
                "ts": "2025-03-20T10:00:00Z",
                "subject_id": "p1",
                "body": {"alert_id": event_id, "alert_type": "x"},
            }
        )

    bad = b'{"kind": "alert", "subject_id": "p1", "body": {}}'
    ran = run(
        tmp_path,
        {
            "a1.jsonl": [
                alert("e1"),
                b"",
                b"   ",
                b"[" + alert("e2") + b"," + bad + b"," + alert("e1") + b"]",
            ],
            "a2.jsonl": [b"", b"not json \xff", alert("e3")],
            "b.json": [alert("e4")],
            "ignored.txt": [alert("e5")],
        },
        patterns="a*.jsonl, b.json".replace(" ", ""),
    )
    assert {row["item_id"] for row in ran.current("work_queue")} == {"e1", "e2", "e3", "e4"}
    assert ran.count("duplicate") == 1
    letters = {row["reason"]: row for row in ran.rows["dead_letters"]}
    assert letters.keys() == {"malformed_json", "invalid_schema"}
    assert len(ran.rows["dead_letters"]) == 2
    assert base64.b64decode(letters["invalid_schema"]["payload"]) == bad
    assert letters["invalid_schema"]["event_kind"] == "alert"
    assert letters["invalid_schema"]["subscription"] == f"{tmp_path}/a1.jsonl"
    assert base64.b64decode(letters["malformed_json"]["payload"]) == b"not json \xff"
    assert letters["malformed_json"]["subscription"] == f"{tmp_path}/a2.jsonl"
    assert ran.count("dead_letter") == 2


def test_what_is_no_duplicate_in_a_bounded_run(tmp_path: Path) -> None:
    def event(patient: str, kind: str, **body: Any) -> bytes:
        return orjson.dumps({"event_id": "1", "kind": kind, "subject_id": patient, "body": body})

    rep = event("p1", "rep_observation", quality_score=0.9)
    other_kind = event("p1", "exercise_session", overall_quality=0.8)
    ran = run(
        tmp_path, {"a.jsonl": [rep, event("p2", "rep_observation", quality_score=0.7), other_kind, rep]}
    )
    assert ran.count("duplicate") == 1
    shown = {row["patient_id"]: row for row in ran.current("quality")}
    assert {patient: row["total_reps"] for patient, row in shown.items()} == {"p1": 1, "p2": 1}
    assert shown["p1"]["last_session_quality"] == 0.8


# --- The same events in any order, with duplicates, on either input


@pytest.fixture(scope="module")
def twenty_thousand() -> list[Arrival]:
    """Different events of many patients. Their consents withhold nothing, so that any order will do."""
    rng = Random("twenty thousand")
    arrivals = random_arrivals(rng, consents="harmless", patients=210, duplicates=False)
    assert len(arrivals) >= 20_000
    rng.shuffle(arrivals)
    return arrivals[:20_000]


@pytest.fixture(scope="module")
def in_order(twenty_thousand: list[Arrival], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    lines = lines_of(sorted(twenty_thousand, key=lambda arrival: arrival.publish_us))
    return run(tmp_path_factory.mktemp("in_order"), {"only.jsonl": lines})


def comparable(ran: Ran, table: str) -> list[str]:
    rows = [{name: row[name] for name in row if name not in HISTORY} for row in ran.current(table)]
    return sorted(orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode() for row in rows)


@pytest.mark.long
def test_twenty_thousand_events_equal_the_independent_calculation(
    twenty_thousand: list[Arrival], in_order: Ran
) -> None:
    check(in_order, twenty_thousand)
    assert in_order.count("processed") == 20_000


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_order_duplicates_and_split_change_nothing(
    seed: int, twenty_thousand: list[Arrival], in_order: Ran, tmp_path: Path
) -> None:
    rng = Random(seed)
    repeated = rng.sample(twenty_thousand, 2_000)
    arrivals = [*twenty_thousand, *repeated]
    rng.shuffle(arrivals)
    share = (seed + 1) / 6
    primary: list[bytes] = []
    secondary: list[bytes] = []
    for line in lines_of(arrivals):
        (primary if rng.random() < share else secondary).append(line)
    ran = run(tmp_path, {"primary.jsonl": primary, "secondary.jsonl": secondary})
    for table in ("adherence", "quality", "work_queue", "consents"):
        assert comparable(ran, table) == comparable(in_order, table)
    assert ran.count("duplicate") == 2_000
    assert ran.count("processed") == 20_000
    assert ran.rows["dead_letters"] == []


# --- Whatever arrives


def test_ten_thousand_fuzzed_lines_are_all_accounted_for(tmp_path: Path) -> None:
    lines = [line for line in fuzzed(Random("lines"), 12_000) if b"\n" not in line and line.strip()][:10_000]
    assert len(lines) == 10_000
    elements = 0
    for line in lines:
        try:
            content = orjson.loads(line)
        except orjson.JSONDecodeError:
            content = None
        elements += len(content) if isinstance(content, list) and content else 1
    ran = run(tmp_path, {"fuzz.jsonl": lines})
    names = ("processed", "duplicate", "withheld", "too_late", "dead_letter")
    assert sum(ran.count(name) for name in names) == elements
    assert len(ran.rows["dead_letters"]) == ran.count("dead_letter") > 1000
    assert ran.count("processed") > 100
    reasons = Counter(row["reason"] for row in ran.rows["dead_letters"])
    assert set(REASONS) >= reasons.keys()
    assert reasons["projection_failed"] == 0
    for reason, count in reasons.items():
        assert ran.counters[f"rehab_tracking.broadway.event.dead_letter.{reason}"] == count
    assert ran.count("unknown") == reasons["unknown_kind"]


# --- The tagged outputs of validation


class Leaves(PipelineVisitor):
    """The steps of a pipeline that consist of no others, by name."""

    def __init__(self) -> None:
        self.steps: dict[str, AppliedPTransform] = {}

    def visit_transform(self, transform_node: AppliedPTransform) -> None:
        self.steps[transform_node.full_label] = transform_node


def can_fail(step: AppliedPTransform) -> bool:
    tags = getattr(step.transform, "output_tags", ())
    return DEAD_LETTERS in tags or any(each.element_type is DeadLetter for each in step.outputs.values())


def test_the_dead_letters_of_every_step_reach_their_table() -> None:
    options = parse_options(
        [
            "--primary_subscription=projects/rehab-local/subscriptions/primary",
            "--nudge_topic=projects/rehab-local/topics/nudges",
            "--dataset=rehab-local.rehab_tracking",
        ]
    )
    pipeline, leaves = beam.Pipeline(), Leaves()
    build(pipeline, options)
    pipeline.visit(leaves)
    collected = {letters.producer.full_label for letters in leaves.steps.pop("Dead letters").inputs}
    failing = {name for name, step in leaves.steps.items() if can_fail(step)}
    # The last resort: what BigQuery refuses of it fails the job.
    assert failing - collected == {"Write dead_letters/Write"}
    assert len(collected) == 8


def test_validation_has_an_output_for_every_route_and_for_dead_letters() -> None:
    bodies: dict[str, dict[str, Any]] = {
        "exercise_session": {},
        "rep_observation": {"quality_score": 1},
        "feedback": {},
        "alert": {"alert_type": "x"},
        "consent": {"granted": True},
    }
    events = [
        orjson.dumps({"event_id": f"{kind} {number}", "kind": kind, "subject_id": "p1", "body": bodies[kind]})
        for number in range(2)
        for kind in KINDS
    ]
    payloads = [*events[:5], b"[" + b",".join(events[5:]) + b",1]", b"{", b'{"kind":"x"}']
    received = {
        "adherence": ("exercise_session", "consent"),
        "quality": ("exercise_session", "rep_observation", "consent"),
        "work_queue": ("alert", "feedback", "consent"),
    }
    now = 1_742_464_800.0
    messages = [Message(payload, {}, "s", "m", int(now * 1e6)) for payload in payloads]
    with test_pipeline.TestPipeline(runner=FnApiRunner()) as pipeline:
        outputs = pipeline | beam.Create([messages]) | tagged(Validate(clock=lambda: now), OUTPUTS)
        assert OUTPUTS.keys() == {*received, DEAD_LETTERS}
        for route, kinds in received.items():
            ids = outputs[route] | f"Ids on {route}" >> beam.FlatMap(_kinds_and_ids)
            expected_ids = [(kind, f"{kind} {number}") for kind in kinds for number in range(2)]
            assert_that(ids, equal_to(expected_ids), f"Check {route}")
        reasons = outputs[DEAD_LETTERS] | beam.Map(lambda letter: letter.reason)
        assert_that(reasons, equal_to(["not_an_event", "malformed_json", "unknown_kind"]), "Check letters")


def _kinds_and_ids(events: EventChunk) -> list[tuple[str, str]]:
    return [(event.kind, event.event_id) for event in events]

"""A running job of the last release can be replaced by this one: `--update` keeps its state."""

import base64
from typing import Any

import pytest

from tests.releases.recording import (
    BATCHES,
    PROJECTORS,
    ROOT,
    Outcome,
    coder_of,
    graph_of,
    read,
    recorded_versions,
    rows_of,
    run_step,
    this_version,
)
from transforms.rows import Row, unpack_row

LAST = recorded_versions()[-1]
ADVICE = (
    "A job of release {version} could not be updated to this code. A step that has another name belongs in "
    "templates/renamed_steps.txt; what is stored or sent needs a coder that reads both forms. If that cannot "
    "be, CHANGELOG.md has to say that the job must be started anew, with --rebuild_days."
)


def renamed() -> dict[str, str]:
    lines = (ROOT / "templates/renamed_steps.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_step_of_the_last_release_is_there(job: Any) -> None:
    recorded, now = read(LAST, "graph.json")["steps"], graph_of(job)["steps"]
    names = renamed()
    assert not [step for step in recorded if names.get(step, step) not in now], ADVICE.format(version=LAST)


def test_only_steps_that_had_another_name_are_renamed(job: Any) -> None:
    recorded, now = read(LAST, "graph.json")["steps"], graph_of(job)["steps"]
    assert not [old for old, new in renamed().items() if old not in recorded or new not in now]


def test_what_holds_state_holds_it_in_the_same_form(job: Any) -> None:
    names, now = renamed(), graph_of(job)["stateful"]
    for step, form in read(LAST, "graph.json")["stateful"].items():
        assert now[names.get(step, step)] == form, ADVICE.format(version=LAST)


def test_this_version_is_recorded_as_it_is(job: Any) -> None:
    assert this_version() == LAST, "Record it: python -m tests.releases.record"
    assert read(LAST, "graph.json") == graph_of(job), "Record it again: python -m tests.releases.record"


def test_every_step_with_state_is_recorded(job: Any) -> None:
    steps = set(graph_of(job)["stateful"])
    assert steps == {*PROJECTORS, *BATCHES}
    for version in recorded_versions():
        held = read(version, "held.json")
        assert set(held) == set(read(version, "graph.json")["stateful"])
        assert all(held.values())


def held_in(version: str, step: str) -> list[dict[str, Any]]:
    """What a release held on the step that has this name now."""
    former = {new: old for old, new in renamed().items()}
    content = read(version, "held.json")
    held: list[dict[str, Any]] = content.get(step) or content[former[step]]
    return held


def taken_over(job: Any, step: str, held: dict[str, Any], coming: str = "on_its_way") -> Outcome:
    """What this code makes of a state, and of an element that is on its way, as a release wrote them."""
    element = coder_of(job, step).decode(base64.b64decode(held[coming]))
    return run_step(step, element, base64.b64decode(held["state"]))


@pytest.mark.parametrize("step", PROJECTORS)
@pytest.mark.parametrize("version", recorded_versions())
def test_events_that_a_release_has_seen_stay_seen(job: Any, version: str, step: str) -> None:
    for held in held_in(version, step):
        again = taken_over(job, step, held, "seen")
        assert (again.outputs, again.state) == ([], base64.b64decode(held["state"]))


@pytest.mark.parametrize("step", PROJECTORS)
@pytest.mark.parametrize("version", recorded_versions())
def test_projections_go_on_where_a_release_left_them(job: Any, version: str, step: str) -> None:
    written = 0
    for held in held_in(version, step):
        rows = rows_of(taken_over(job, step, held))
        written += len(rows)
        # A later release may have columns of its own.
        shown = [
            [table, {name: row.get(name) for name in columns}]
            for (table, row), (_, columns) in zip(rows, held["rows"], strict=True)
        ]
        assert shown == held["rows"]
    assert written


@pytest.mark.parametrize("step", BATCHES)
@pytest.mark.parametrize("version", recorded_versions())
def test_rows_on_their_way_arrive(job: Any, version: str, step: str) -> None:
    coder = coder_of(job, step)
    for held in held_in(version, step):
        shard, packed = coder.decode(base64.b64decode(held["on_its_way"]))
        key, row_version, publish_us, body = held["row"][1:]
        row = Row(key, row_version, publish_us, base64.b64decode(body))
        assert (shard, unpack_row(packed)) == (held["row"][0], row)

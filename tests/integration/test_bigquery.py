"""The tables' views and the writer, against the real emulator; faults are put between by a proxy."""

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue
from google.api_core.exceptions import Forbidden
from google.auth.exceptions import GoogleAuthError

from local.emulators import bigquery_emulator
from pipeline.cloud.clients import bigquery
from pipeline.operations.provisioning import Resources, provision, table_definition
from pipeline.sinks.bigquery import TableWriter
from pipeline.sinks.sink import Rejection
from pipeline.sinks.tables import WriteBatch
from tests.integration.conftest import PROJECT
from transforms.rows import Row, pack_row


def row(key: str, columns: dict[str, Any], version: int = 1) -> Row:
    body = {"version": version, "updated_at": "2026-03-02T10:00:00.000001Z", "visible": True, **columns}
    return Row(key, version, 0, json.dumps(body).encode())


def adherence(patient: str, version: int = 1, **columns: Any) -> Row:
    stated = {
        "patient_id": patient,
        "week_start": "2026-03-02",
        "prescribed_sessions": 7,
        "completed_sessions": 3,
        "partial_sessions": 0,
        "missed_sessions": 4,
        "adherence_percentage": 42.857143,
        "rolling_7day_avg": 42.857143,
        "rolling_28day_avg": 10.714286,
        "last_session_at": "2026-03-04T08:30:00Z",
        "consecutive_missed_days": None,
        "consent_status": "granted",
        "source_event_id": "e",
        **columns,
    }
    return row(f"{patient}|{stated['week_start']}", stated, version)


def quality(patient: str, version: int = 1, **columns: Any) -> Row:
    stated = {
        "patient_id": patient,
        "exercise_id": "",
        "total_reps": 2,
        "average_quality": 0.5,
        "critical_issues_count": 1,
        "critical_issues_percentage": 50.0,
        "percentile_25": 0.4,
        "percentile_50": 0.4,
        "percentile_75": 0.6,
        "quality_trend": "stable",
        "form_issue_frequency": [{"type": "knee", "count": 2}, {"type": "hip", "count": 1}],
        "last_session_quality": None,
        **columns,
    }
    return row(f"{patient}|{stated['exercise_id']}", stated, version)


def work_item(patient: str, item: str, version: int = 1, **columns: Any) -> Row:
    stated = {
        "item_id": item,
        "patient_id": patient,
        "item_type": "alert",
        "urgency": "high",
        "priority": 2,
        "status": "pending",
        "created_at": "2026-03-02T10:00:00Z",
        "sla_deadline": "2026-03-03T10:00:00Z",
        "context": json.dumps({"alert_type": "fall", "note": 'a "quoted" word'}),
        **columns,
    }
    return row(f"{patient}|{item}", stated, version)


def consent(patient: str, version: int, status: str) -> Row:
    columns = {"patient_id": patient, "consent_status": status, "visible": status != "revoked"}
    return row(patient, columns, version)


def dead_letter(
    letter_id: str, payload: bytes, failed_at: str = "2026-03-02T10:00:00Z", attempts: int = 1
) -> Row:
    columns = {
        "dead_letter_id": letter_id,
        "reason": "malformed_json",
        "stage": "Decode",
        "payload": base64.b64encode(payload).decode(),
        "attributes": json.dumps({"site": "north"}),
        "failed_at": failed_at,
        "attempts": attempts,
    }
    return Row(letter_id, attempts, 0, json.dumps(columns).encode())


def write(dataset: str, table: str, *rows: Row) -> list[Rejection]:
    return TableWriter(dataset, table).write(rows)


def read(dataset: str, source: str) -> list[dict[str, Any]]:
    return [dict(found) for found in bigquery(PROJECT).query_and_wait(f"SELECT * FROM `{dataset}.{source}`")]


def keys(dataset: str, view: str, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(found[column] for column in columns) for found in read(dataset, view))


@pytest.fixture
def dataset(provisioned: Resources) -> str:
    return provisioned.dataset


# --- The views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["adherence", "quality", "work_queue", "dead_letters"])
def test_a_view_has_the_columns_of_its_table(unchanged: Resources, table: str) -> None:
    client, dataset = bigquery(PROJECT), unchanged.dataset
    view = client.query_and_wait(f"SELECT * FROM `{dataset}.{table}_current`").schema
    columns = client.get_table(f"{dataset}.{table}").schema
    assert [(field.name, field.field_type) for field in view] == [
        (field.name, field.field_type) for field in columns
    ]


def test_the_newest_version_of_each_key_is_shown_whatever_came_last(dataset: str) -> None:
    write(dataset, "adherence", adherence("p", 3, completed_sessions=3), adherence("q", 1))
    write(dataset, "adherence", adherence("p", 2, completed_sessions=2))
    write(dataset, "adherence", adherence("p", 1, week_start="2026-03-09"))
    shown = keys(dataset, "adherence_current", "patient_id", "completed_sessions", "version")
    assert shown == [("p", 3, 1), ("p", 3, 3), ("q", 3, 1)]
    assert len(read(dataset, "adherence")) == 4


def test_a_key_whose_newest_version_is_not_visible_is_not_shown(dataset: str) -> None:
    write(dataset, "quality", quality("p", 1), quality("q", 1), quality("p", 2, visible=False))
    assert keys(dataset, "quality_current", "patient_id") == [("q",)]
    write(dataset, "quality", quality("p", 3))
    assert keys(dataset, "quality_current", "patient_id", "version") == [("p", 3), ("q", 1)]


def test_a_revoked_consent_hides_all_rows_of_the_patient_and_a_new_grant_brings_them_back(
    dataset: str,
) -> None:
    views = ("adherence_current", "quality_current", "work_queue_current")
    for patient in ("p", "q"):
        write(dataset, "adherence", adherence(patient), adherence(patient, week_start="2025-12-29"))
        write(dataset, "quality", quality(patient))
        write(dataset, "work_queue", work_item(patient, "i"))
    write(dataset, "consents", consent("p", 10, "revoked"), consent("q", 10, "granted"))
    assert [{found["patient_id"] for found in read(dataset, view)} for view in views] == [{"q"}] * 3
    write(dataset, "consents", consent("p", 9, "granted"))
    assert {found["patient_id"] for found in read(dataset, "adherence_current")} == {"q"}
    write(dataset, "consents", consent("p", 11, "granted"))
    assert [{found["patient_id"] for found in read(dataset, view)} for view in views] == [{"p", "q"}] * 3
    assert len(read(dataset, "adherence_current")) == 4


def test_items_of_two_patients_with_the_same_id_are_both_shown(dataset: str) -> None:
    write(dataset, "work_queue", work_item("p", "1", 1), work_item("q", "1", 2), work_item("q", "1", 1))
    shown = keys(dataset, "work_queue_current", "patient_id", "item_id", "version")
    assert shown == [("p", "1", 1), ("q", "1", 2)]


def test_a_dead_letter_is_shown_as_it_failed_last(dataset: str) -> None:
    write(dataset, "dead_letters", dead_letter("d", b"x", "2026-03-03T00:00:00Z", attempts=2))
    write(dataset, "dead_letters", dead_letter("d", b"x"), dead_letter("e", b"y"))
    shown = keys(dataset, "dead_letters_current", "dead_letter_id", "attempts")
    assert shown == [("d", 2), ("e", 1)]


# --- The writer ----------------------------------------------------------------------------------


def test_every_type_comes_back_as_it_was_written(dataset: str) -> None:
    payload = bytes(range(256))
    write(dataset, "dead_letters", dead_letter("d", payload))
    write(dataset, "work_queue", work_item("p", "i"))
    write(dataset, "quality", quality("p"))
    write(dataset, "adherence", adherence("Zoë 患者"))
    (letter,) = read(dataset, "dead_letters_current")
    assert (letter["payload"], letter["attributes"]) == (payload, {"site": "north"})
    (item,) = read(dataset, "work_queue_current")
    assert item["context"] == {"alert_type": "fall", "note": 'a "quoted" word'}
    assert (item["resolved_at"], item["priority"]) == (None, 2)
    (scores,) = read(dataset, "quality_current")
    assert scores["form_issue_frequency"] == [{"type": "knee", "count": 2}, {"type": "hip", "count": 1}]
    assert scores["percentile_25"] == 0.4
    (week,) = read(dataset, "adherence_current")
    assert week["patient_id"] == "Zoë 患者"
    assert week["week_start"].isoformat() == "2026-03-02"
    assert week["updated_at"].isoformat() == "2026-03-02T10:00:00.000001+00:00"


def test_no_rows_are_no_request(dataset: str) -> None:
    assert TableWriter(dataset, "adherence").write([]) == []


def test_rows_written_twice_are_shown_once(dataset: str) -> None:
    rows = [adherence(f"p{number}") for number in range(100)]
    assert write(dataset, "adherence", *rows) == []
    assert write(dataset, "adherence", *rows) == []
    assert len(read(dataset, "adherence_current")) == 100


def test_a_refused_row_comes_back_and_its_neighbours_are_written(dataset: str) -> None:
    rows = [adherence(f"p{number:02}") for number in range(100)]
    rows[37] = adherence("p37", completed_sessions="secret-value")
    (rejection,) = write(dataset, "adherence", *rows)
    assert rejection == Rejection(rows[37], "completed_sessions: invalid")
    shown = keys(dataset, "adherence_current", "patient_id")
    assert shown == [(f"p{number:02}",) for number in range(100) if number != 37]


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"adherence_percentage": "secret-value"}, "adherence_percentage: invalid"),
        ({"week_start": "secret-value"}, "week_start: invalid"),
        ({"consent_status": None}, "consent_status: invalid"),
        ({"no_such_column": "secret-value"}, "no_such_column: invalid"),
        (
            {"version": "secret-value", "updated_at": "secret-value"},
            "version: invalid; updated_at: invalid",
        ),
    ],
)
def test_an_error_names_the_column_and_never_the_value(
    dataset: str, columns: dict[str, Any], error: str
) -> None:
    (rejection,) = write(dataset, "adherence", adherence("patient-of-the-row", **columns))
    assert sorted(rejection.error.split("; ")) == sorted(error.split("; "))


def test_an_error_that_bigquery_puts_nowhere_in_particular(dataset: str) -> None:
    good, bad = dead_letter("d", b"x"), work_item("p", "i")
    broken = json.loads(good.body) | {"dead_letter_id": "e", "payload": "secret-value"}
    rejections = write(dataset, "dead_letters", good, bad._replace(body=json.dumps(broken).encode()))
    assert [rejection.error for rejection in rejections] == ["row: invalid"]
    assert keys(dataset, "dead_letters_current", "dead_letter_id") == [("d",)]


def test_more_than_a_request_takes_is_sent_in_several(dataset: str) -> None:
    rows = [dead_letter(f"d{number}", b"\xff" * 1_500_000) for number in range(12)]
    assert write(dataset, "dead_letters", *rows) == []
    assert len(read(dataset, "dead_letters_current")) == 12


def test_a_row_that_no_request_takes_is_written(dataset: str) -> None:
    payload = bytes(range(250)) * 40_000
    rows = [dead_letter("small", b"x"), dead_letter("large", payload), dead_letter("other", b"y")]
    assert write(dataset, "dead_letters", *rows) == []
    assert write(dataset, "dead_letters", *rows) == []
    found = {letter["dead_letter_id"]: letter for letter in read(dataset, "dead_letters_current")}
    assert set(found) == {"small", "large", "other"}
    assert found["large"]["payload"] == payload
    assert found["large"]["attributes"] == {"site": "north"}
    assert len([letter for letter in read(dataset, "dead_letters") if letter["payload"] == payload]) == 1


def test_a_large_row_that_another_dataset_has_too(dataset: str) -> None:
    other = f"{dataset}_other"
    bigquery(PROJECT).create_dataset(other)
    bigquery(PROJECT).create_table(table_definition(other, "dead_letters"))
    for written in (dataset, other):
        assert write(written, "dead_letters", dead_letter("large", b"x" * 8_000_000)) == []
        assert len(read(written, "dead_letters")) == 1


def test_a_row_that_no_request_takes_and_no_job_either(dataset: str) -> None:
    large = dead_letter("large", b"x" * 8_000_000)
    broken = large._replace(body=json.dumps(json.loads(large.body) | {"attempts": "secret-value"}).encode())
    assert write(dataset, "dead_letters", broken) == [Rejection(broken, "row: invalid")]


def bundle(dataset: str, *batches: list[Row]) -> Iterator[list[WindowedValue]]:
    """What each batch of a bundle leads to, and then the bundle's end."""
    write = WriteBatch(dataset, "adherence")
    write.setup()
    write.start_bundle()
    for rows in batches:
        yield list(write.process((0, [pack_row(row) for row in rows]), Timestamp(1)))
    yield list(write.finish_bundle())


def test_the_batches_of_a_bundle_are_written_together(dataset: str) -> None:
    refused = adherence("p2", completed_sessions="secret-value")
    batches = [[adherence("p0"), adherence("p1")], [adherence("p1", version=2), refused]]
    *before, (letter,) = bundle(dataset, *batches)
    assert before == [[], []]
    assert (letter.value.error, letter.value.message.payload) == ("completed_sessions: invalid", refused.body)
    assert letter.timestamp == Timestamp(1)
    assert keys(dataset, "adherence", "patient_id", "version") == [("p0", 1), ("p1", 2)]


def test_a_bundle_of_many_rows_is_written_as_it_comes(dataset: str) -> None:
    batches = [[adherence(f"p{batch * 100 + number}") for number in range(100)] for batch in range(6)]
    written = [len(read(dataset, "adherence")) for _ in bundle(dataset, *batches)]
    assert written == [0, 0, 0, 0, 500, 500, 600]


def test_writers_in_several_threads(dataset: str) -> None:
    batches = [[adherence(f"p{batch}-{number}") for number in range(20)] for batch in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda rows: write(dataset, "adherence", *rows), batches)) == [[]] * 8
    assert len(read(dataset, "adherence_current")) == 160


def test_an_outage_is_waited_for(
    resources: Resources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    with bigquery_emulator(tmp_path, tmp_path / "data", port):
        provision(resources, report=lambda line: None)
        writer = TableWriter(resources.dataset, "adherence")
        assert writer.write([adherence("before")]) == []
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(writer.write, [adherence("during")])
        with bigquery_emulator(tmp_path, tmp_path / "data", port):
            assert written.result(120) == []
            assert keys(resources.dataset, "adherence_current", "patient_id") == [("before",), ("during",)]
    assert "Writing to adherence again after ConnectionError" in caplog.messages
    assert "during" not in caplog.text


# --- Faults that the emulator does not have of itself --------------------------------------------

# Given the ids of a request's rows: the status and body of a faulty answer, or None for the real one.
Fault = Callable[[list[str]], tuple[int, dict[str, Any]] | None]


class Proxy:
    """Stands between the client and the emulator; each insertAll meets the next fault, if any is left."""

    def __init__(self, emulator: str) -> None:
        self.faults: list[Fault] = []
        self.requests: list[list[str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = proxy.answer(body) if self.path.split("?")[0].endswith("/insertAll") else None
                if answer is not None:
                    return self.reply(answer[0], json.dumps(answer[1]).encode(), {})
                return self.forward(body)

            def do_GET(self) -> None:
                self.forward(b"")

            def forward(self, body: bytes) -> None:
                headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
                answer = requests.request(
                    self.command, emulator + self.path, data=body, headers=headers, timeout=60
                )
                kept = {name: answer.headers[name] for name in ("Location",) if name in answer.headers}
                self.reply(answer.status_code, answer.content, kept)

            def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]] | None:
        columns = [sent["json"] for sent in json.loads(body)["rows"]]
        ids = [str(sent.get("patient_id", sent.get("dead_letter_id"))) for sent in columns]
        self.requests.append(ids)
        return self.faults.pop(0)(ids) if self.faults else None


@pytest.fixture
def proxy(dataset: str, monkeypatch: pytest.MonkeyPatch, emulators: str) -> Iterator[Proxy]:
    between = Proxy(emulators)
    thread = threading.Thread(target=between.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("BIGQUERY_EMULATOR_HOST", f"http://127.0.0.1:{between.server.server_port}")
    yield between
    between.server.shutdown()
    thread.join()
    between.server.server_close()


def http_error(status: int, reason: str) -> Fault:
    detail = {"reason": reason, "message": "It quotes a secret-value."}
    return lambda _: (status, {"error": {"code": status, "message": "secret-value", "errors": [detail]}})


def row_errors(reasons: dict[str, str]) -> Fault:
    """A request of which nothing is written, for these reasons; rows not named are `stopped`."""

    def fault(ids: list[str]) -> tuple[int, dict[str, Any]]:
        errors = [
            {"index": index, "errors": [{"reason": reasons.get(found, "stopped"), "location": ""}]}
            for index, found in enumerate(ids)
        ]
        return 200, {"insertErrors": errors}

    return fault


def test_stopped_neighbours_are_sent_again_without_the_refused_row(dataset: str, proxy: Proxy) -> None:
    proxy.faults = [row_errors({"b": "invalid"})]
    rows = [adherence(patient) for patient in "abc"]
    assert write(dataset, "adherence", *rows) == [Rejection(rows[1], "row: invalid")]
    assert proxy.requests == [["a", "b", "c"], ["a", "c"]]
    assert keys(dataset, "adherence_current", "patient_id") == [("a",), ("c",)]


@pytest.mark.parametrize("reason", ["backendError", "timeout", "rateLimitExceeded", "internalError"])
def test_rows_that_fail_for_now_are_sent_again(dataset: str, proxy: Proxy, reason: str) -> None:
    proxy.faults = [row_errors(dict.fromkeys("abc", reason))]
    assert write(dataset, "adherence", *[adherence(patient) for patient in "abc"]) == []
    assert proxy.requests == [["a", "b", "c"]] * 2
    assert len(read(dataset, "adherence")) == 3


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "notFound"),
        (429, "rateLimitExceeded"),
        (403, "rateLimitExceeded"),
        (403, "quotaExceeded"),
        (500, "internalError"),
        (502, "badGateway"),
        (503, "backendError"),
        (504, "timeout"),
    ],
)
def test_a_request_that_fails_for_now_is_sent_again(
    dataset: str, proxy: Proxy, caplog: pytest.LogCaptureFixture, status: int, reason: str
) -> None:
    proxy.faults = [http_error(status, reason)] * 2
    assert write(dataset, "adherence", adherence("a")) == []
    assert proxy.requests == [["a"]] * 3
    assert len(read(dataset, "adherence")) == 1
    assert "secret-value" not in caplog.text


@pytest.mark.parametrize(("status", "expected"), [(401, GoogleAuthError), (403, Forbidden)])
def test_a_missing_right_is_raised(
    dataset: str, proxy: Proxy, status: int, expected: type[Exception]
) -> None:
    proxy.faults = [http_error(status, "accessDenied")]
    with pytest.raises(expected):
        write(dataset, "adherence", adherence("a"))
    assert len(proxy.requests) == 1


def test_a_request_refused_as_a_whole_is_halved_until_the_bad_row_stands_alone(
    dataset: str, proxy: Proxy
) -> None:
    refusal = http_error(400, "invalid")
    proxy.faults = [lambda ids: refusal(ids) if "p05" in ids else None] * 40
    rows = [adherence(f"p{number:02}") for number in range(16)]
    assert write(dataset, "adherence", *rows) == [Rejection(rows[5], "row: invalid")]
    assert len(read(dataset, "adherence_current")) == 15
    assert len(proxy.requests) == 1 + 2 * 4


def test_a_row_too_large_for_streaming_by_the_servers_measure_is_loaded(dataset: str, proxy: Proxy) -> None:
    refusal = http_error(413, "uploadTooLarge")
    proxy.faults = [lambda ids: refusal(ids) if "large" in ids else None] * 10
    assert write(dataset, "dead_letters", dead_letter("large", b"x" * 1000), dead_letter("d", b"x")) == []
    assert keys(dataset, "dead_letters_current", "dead_letter_id") == [("d",), ("large",)]

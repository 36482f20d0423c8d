"""No wrong combination of options starts a pipeline: each is refused with one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    FlinkRunnerOptions,
    StandardOptions,
    WorkerOptions,
)

from pipeline.errors import OptionsError
from pipeline.options import IMAGE_VARIABLE, RehabOptions, parse_options

PRIMARY = "--primary_subscription=projects/rehab-local/subscriptions/rehab-primary"
SECONDARY = "--secondary_subscription=projects/rehab-local/subscriptions/rehab-secondary"
TOPIC = "--nudge_topic=projects/rehab-local/topics/rehab-nudges"
DATASET = "--dataset=rehab-local.rehab_tracking"
STREAM = [PRIMARY, SECONDARY, TOPIC, DATASET]
CLOUD = ["--runner=DataflowRunner", "--project=rehab-local", "--region=r", "--temp_location=gs://bucket/temp"]


@pytest.fixture
def events_file(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_text("")
    return path


def bounded(events_file: Path) -> list[str]:
    return [f"--input_files={events_file}", f"--output_dir={events_file.parent / 'out'}"]


def sentence_of(arguments: list[str]) -> str:
    """The refusal of options, checked to be one sentence."""
    with pytest.raises(OptionsError) as caught:
        parse_options(arguments)
    text = str(caught.value)
    assert text.endswith(".")
    assert not text.endswith("..")
    assert "\n" not in text
    assert text == text.strip()
    # Nothing of the machinery that found out.
    for word in ("Traceback", "Error(", "pydantic", "argparse", "None", "PipelineOptions"):
        assert word not in text
    return text


def test_a_stream() -> None:
    options = parse_options(STREAM)
    assert not options.is_bounded
    assert list(options.subscriptions) == ["primary", "secondary"]
    assert options.view_as(StandardOptions).streaming


def test_a_stream_from_one_subscription() -> None:
    assert list(parse_options([PRIMARY, TOPIC, DATASET]).subscriptions) == ["primary"]


def test_a_bounded_run(events_file: Path) -> None:
    options = parse_options(bounded(events_file))
    assert options.is_bounded
    assert not options.view_as(StandardOptions).streaming
    parse_options([*bounded(events_file), DATASET])
    parse_options([f"--input_files={events_file}", DATASET])
    parse_options([f"--input_files={events_file}, {events_file.parent}/*.jsonl", DATASET])


def test_defaults_are_the_contracts() -> None:
    options = parse_options(STREAM)
    assert (options.processors, options.batchers, options.batch_size, options.batch_timeout_ms) == (
        10,
        2,
        100,
        1000,
    )
    settings = options.settings()
    assert settings.consent == "enforce"
    assert settings.prescribed_sessions_per_week == 7
    assert settings.nudge_max_age_hours == 24
    assert options.rebuild_days == 0


@pytest.mark.parametrize(("arguments", "processors"), [([], 10), (["--processors=3"], 3)])
def test_processors_reach_the_runner(arguments: list[str], processors: int) -> None:
    options = parse_options([*STREAM, *arguments])
    assert options.view_as(DebugOptions).number_of_worker_harness_threads == processors
    assert options.view_as(FlinkRunnerOptions).parallelism == processors


REFUSED_IN_A_STREAM = [
    # Unknown flags and what is no flag at all.
    (["--no_such_option=1"], "--no_such_option"),
    (["--batch_sizes=100"], "--batch_sizes"),
    (["--batch_siz=100"], "--batch_siz"),
    (["--consents", "off"], "--consents"),
    (["stray"], "stray"),
    # Bad types.
    (["--processors=many"], "--processors"),
    (["--processors=2.5"], "--processors"),
    (["--processors"], "--processors"),
    (["--batchers="], "--batchers"),
    (["--batch_size=1e2"], "--batch_size"),
    (["--batch_timeout_ms=1s"], "--batch_timeout_ms"),
    (["--prescribed_sessions_per_week=x"], "--prescribed_sessions_per_week"),
    (["--nudge_max_age_hours=day"], "--nudge_max_age_hours"),
    (["--rebuild_days=x"], "--rebuild_days"),
    (["--consent=maybe"], "--consent"),
    # Out of range.
    (["--processors=0"], "--processors"),
    (["--processors=1001"], "--processors"),
    (["--batchers=0"], "--batchers"),
    (["--batch_size=0"], "--batch_size"),
    (["--batch_size=50001"], "--batch_size"),
    (["--batch_timeout_ms=0"], "--batch_timeout_ms"),
    (["--batch_timeout_ms=-5"], "--batch_timeout_ms"),
    (["--prescribed_sessions_per_week=0"], "--prescribed_sessions_per_week"),
    (["--prescribed_sessions_per_week=22"], "--prescribed_sessions_per_week"),
    (["--rebuild_days=-1"], "--rebuild_days"),
    (["--rebuild_days=32"], "--rebuild_days"),
    (["--nudge_max_age_hours=-1"], "--nudge_max_age_hours"),
    (["--nudge_max_age_hours=nan"], "--nudge_max_age_hours"),
    (["--nudge_max_age_hours=inf"], "--nudge_max_age_hours"),
    # Contradictions.
    (["--input_files=x.jsonl"], "--input_files"),
    (["--output_dir=out"], "--output_dir"),
    (["--number_of_worker_harness_threads=4"], "--number_of_worker_harness_threads"),
    # The cloud's own needs.
    ([*CLOUD[:1], *CLOUD[2:]], "--project"),
    ([*CLOUD[:2], *CLOUD[3:]], "--region"),
    (CLOUD[:3], "--temp_location"),
    ([*CLOUD, "--temp_location=/tmp/t"], "--temp_location"),
    ([*CLOUD, "--temp_location=gs://b/t"], "--temp_location"),
    ([*CLOUD, "--staging_location=gs://bucket"], "--staging_location"),
    (["--rebuild_days=3", "--dry_run=True"], "--rebuild_days"),
    (["--rebuild_days=3", "--update"], "--rebuild_days"),
    ([*CLOUD, "--metrics_file=m.json"], "--metrics_file"),
    # What only a run that ends with an account can show.
    (["--quiet"], "--quiet"),
    (["--verbose"], "--verbose"),
    (["--fail_on_dead_letters"], "--fail_on_dead_letters"),
    # What would show a patient's data.
    ([*CLOUD, "--enable_hot_key_logging"], "--enable_hot_key_logging"),
    ([*CLOUD, "--experiments=enable_data_sampling"], "enable_data_sampling"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED_IN_A_STREAM, ids=str)
def test_refused_in_a_stream(arguments: list[str], named: str) -> None:
    assert named in sentence_of([*STREAM, *arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--primary_subscription"),
        ([TOPIC, DATASET], "--primary_subscription"),
        ([SECONDARY, TOPIC, DATASET], "--primary_subscription"),
        ([PRIMARY, TOPIC], "--dataset"),
        ([PRIMARY, DATASET], "--nudge_topic"),
        ([PRIMARY, PRIMARY.replace("primary_", "secondary_", 1), TOPIC, DATASET], "--secondary_subscription"),
        (["--primary_subscription=rehab-primary", TOPIC, DATASET], "--primary_subscription"),
        (
            ["--primary_subscription=projects/demo/subscriptions/rehab-primary", TOPIC, DATASET],
            "--primary_subscription",
        ),
        ([PRIMARY, "--secondary_subscription=projects/p", TOPIC, DATASET], "--secondary_subscription"),
        ([PRIMARY, "--nudge_topic=rehab-nudges", DATASET], "--nudge_topic"),
        ([PRIMARY, "--nudge_topic=projects/rehab-local/subscriptions/x", DATASET], "--nudge_topic"),
        ([PRIMARY, TOPIC, "--dataset=rehab_tracking"], "--dataset"),
        ([PRIMARY, TOPIC, "--dataset=rehab-local:rehab_tracking"], "--dataset"),
        ([PRIMARY, TOPIC, "--dataset=rehab-local.rehab-tracking"], "--dataset"),
    ],
    ids=str,
)
def test_sources_and_sinks_of_a_stream_that_do_not_work(arguments: list[str], named: str) -> None:
    assert named in sentence_of(arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([TOPIC], "--nudge_topic"),
        ([PRIMARY], "--input_files"),
        (["--rebuild_days=3"], "--rebuild_days"),
        (["--streaming"], "--streaming"),
        (["--dataset=nothing"], "--dataset"),
        (["--quiet", "--verbose"], "--quiet"),
        (CLOUD, "gs://"),
        ([*CLOUD, "--overwrite"], "--overwrite"),
    ],
    ids=str,
)
def test_refused_in_a_bounded_run(arguments: list[str], named: str, events_file: Path) -> None:
    assert named in sentence_of([*bounded(events_file), *arguments])


@pytest.mark.parametrize("name", ["quiet", "verbose", "fail_on_dead_letters"])
def test_what_a_run_on_dataflow_cannot_show(name: str) -> None:
    files = ["--input_files=gs://bucket/x.jsonl", "--output_dir=gs://bucket/out"]
    assert f"--{name}" in sentence_of([*files, *CLOUD, f"--{name}"])


def test_an_option_is_stated_however_it_is_written(events_file: Path) -> None:
    for arguments in (["--direct_num_workers=1"], ["--direct_num_workers", "1"]):
        assert parse_options([*bounded(events_file), *arguments]).states("direct_num_workers")
    assert not parse_options(bounded(events_file)).states("direct_num_workers", "direct_running_mode")


def test_a_bounded_run_without_input_or_output(events_file: Path) -> None:
    assert "--output_dir" in sentence_of([f"--input_files={events_file}"])
    assert "--overwrite" in sentence_of([f"--input_files={events_file}", DATASET, "--overwrite"])
    assert "--input_files" in sentence_of(["--input_files=,", DATASET])


def test_a_policy_that_is_nowhere_to_be_read(events_file: Path) -> None:
    for path in ("s3://b/policy.yaml", "https://a/policy.yaml", "file://a/policy.yaml"):
        assert sentence_of([*bounded(events_file), f"--policy_config={path}"]).startswith(
            f"--policy_config: {path} "
        )


# --- From the template

LAUNCHED = [*STREAM, *CLOUD, "--template_location=gs://bucket/staging/template_launches/1/job_object"]


def image_of(arguments: list[str]) -> str | None:
    image: str | None = parse_options(arguments).view_as(WorkerOptions).sdk_container_image
    return image


def test_workers_run_the_image_that_launches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_VARIABLE, "registry/own:1")
    assert image_of(LAUNCHED) == "registry/own:1"
    assert image_of([*LAUNCHED, "--sdk_container_image=registry/stated:1"]) == "registry/stated:1"
    assert image_of(STREAM) is None


def test_a_template_without_an_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMAGE_VARIABLE, "")
    assert "--sdk_container_image" in sentence_of(LAUNCHED)
    monkeypatch.delenv(IMAGE_VARIABLE)
    assert "--sdk_container_image" in sentence_of(LAUNCHED)


def test_an_option_of_a_later_launcher_does_not_stop_the_launch() -> None:
    launched = [
        *LAUNCHED,
        "--sdk_container_image=registry/own:1",
        "--batchers=4",
        "--an_option_of_the_future=1",
    ]
    assert parse_options(launched).batchers == 4


def test_an_update_keeps_the_state_that_a_rebuild_would_build() -> None:
    update = [*STREAM, *CLOUD, "--job_name=rehab-tracking", "--update"]
    parse_options(update)
    assert "--rebuild_days" in sentence_of([*update, "--rebuild_days=31"])


# --- The policy file


def with_policy(path: Path) -> RehabOptions:
    return parse_options([*STREAM, f"--policy_config={path}"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.yaml", "pain:\n  emergency: 8\n"),
        ("policy.yaml", "# nothing but this\npain: {emergency: 8.0}"),
        ("policy.json", '{"pain": {"emergency": 8}}'),
    ],
)
def test_a_policy_file_states_what_differs(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    policy = with_policy(tmp_path / name).settings().policy
    assert policy.pain.emergency == 8
    assert policy.pain.alert == 4
    assert policy.missed_sessions.gap_days == 3


def test_an_empty_policy_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    assert with_policy(tmp_path / "p.yaml").settings() == parse_options(STREAM).settings()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"pains: {emergency: 8}", "pains"),
        (b"pain: {emergencies: 8}", "pain.emergencies"),
        (b"pain: {emergency: high}", "pain.emergency"),
        (b'pain: {emergency: "8"}', "pain.emergency"),
        (b"pain: {emergency: 11}", "pain.emergency"),
        (b"pain: {emergency: .nan}", "pain.emergency"),
        (b"pain: 8", "pain"),
        (b"pain:", "pain"),
        (b"missed_sessions: {gap_days: 2.5}", "missed_sessions.gap_days"),
        (b"missed_sessions: {gap_days: true}", "missed_sessions.gap_days"),
        (b"low_weekly_adherence: {percent: 40}", "low_weekly_adherence"),
        (b"- pain", "the file"),
        (b"just text", "the file"),
        (b"8", "the file"),
        (b"8: {a: 1}", "8"),
        (b"pain: {emergency: 8", "neither YAML nor JSON"),
        (b"a: b: c", "neither YAML nor JSON"),
        (b"\xff\xfe\x00", "neither YAML nor JSON"),
        (b"!!python/object:os.system {}", "neither YAML nor JSON"),
    ],
    ids=repr,
)
def test_a_policy_file_that_does_not_work(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(content)
    text = sentence_of([*STREAM, f"--policy_config={path}"])
    assert text.startswith("--policy_config: ")
    assert str(path) in text
    assert named in text


def test_a_policy_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        assert str(path) in sentence_of([*STREAM, f"--policy_config={path}"])


# --- The command


def lines_of_refusal(arguments: list[str]) -> list[str]:
    """What the command says of arguments that it refuses."""
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[-1].startswith("pipeline.main: ")
    assert lines[-1].endswith(".")
    return lines


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [*STREAM, "--batch_size=0"],
        [*STREAM, "--no_such_option=1"],
        [*STREAM, "--policy_config=/missing.yaml"],
        [*STREAM, "--runner=Nonsense"],
        [*STREAM, "--runner=nonsense.Runner"],
    ],
    ids=str,
)
def test_the_command_says_one_sentence(arguments: list[str]) -> None:
    assert len(lines_of_refusal(arguments)) == 1


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("--job_name=Bad_Name", "Invalid job_name (Bad_Name)"),
        ("--project=Bad_Name", "Invalid Project ID (Bad_Name)"),
    ],
)
def test_what_only_beam_can_tell(argument: str, wanted: str) -> None:
    dry = [*STREAM, *CLOUD, "--staging_location=gs://bucket/staging", "--dry_run=True"]
    # Beam logs on its way there.
    assert wanted in lines_of_refusal([*dry, argument])[-1]

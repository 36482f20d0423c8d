"""The pipeline's options, each declared once, and the checks before anything runs."""

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import yaml
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import (
    DebugOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
    _BeamArgumentParser,
)

from pipeline.cloud.files import usable_path
from pipeline.errors import OptionsError
from pipeline.names import DATASET, SUBSCRIPTION, TOPIC
from pipeline.runners import Runner
from transforms.policy.thresholds import Policy, policy_from
from transforms.projections.consent import CONSENT_MODES
from transforms.projections.projector import RuleSettings

_BUCKET_FOLDER = re.compile(r"gs://[a-z0-9][-_.a-z0-9]+[a-z0-9]/.*")

# The template's image sets this to its own name, so that workers run the code that built their job.
IMAGE_VARIABLE = "SDK_CONTAINER_IMAGE"

_DATA_SAMPLING = "enable_data_sampling"

# Pub/Sub retains messages for at most 31 days.
MAX_REBUILD_DAYS = 31


class RehabOptions(PipelineOptions):
    """The pipeline's own options (docs/contract.md, 1)."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        source = parser.add_argument_group("where events come from")
        source.add_argument(
            "--primary_subscription",
            help="Pub/Sub subscription to read, projects/PROJECT/subscriptions/NAME.",
        )
        source.add_argument(
            "--secondary_subscription",
            help="A second subscription; an event that arrives on both counts once.",
        )
        source.add_argument(
            "--input_files",
            help="For a bounded run, instead of subscriptions: JSON lines, comma-separated paths or globs.",
        )
        sink = parser.add_argument_group("where results go")
        sink.add_argument(
            "--dataset", help="BigQuery dataset for projections and dead letters, PROJECT.DATASET."
        )
        sink.add_argument("--nudge_topic", help="Pub/Sub topic for nudges, projects/PROJECT/topics/NAME.")
        sink.add_argument(
            "--output_dir", help="For a bounded run: directory for <table>*.jsonl and nudges*.jsonl."
        )
        sink.add_argument(
            "--overwrite",
            action="store_true",
            help="Replace the results of an earlier run in --output_dir; no other file there is touched.",
        )
        shape = parser.add_argument_group("parallelism and batches")
        shape.add_argument(
            "--processors", type=int, default=10, help="Processing parallelism of each worker."
        )
        shape.add_argument("--batchers", type=int, default=2, help="Batching shards per table.")
        shape.add_argument("--batch_size", type=int, default=100, help="Rows per batch.")
        shape.add_argument(
            "--batch_timeout_ms",
            type=int,
            default=1000,
            help="Longest time that a row waits in a batch, in milliseconds.",
        )
        rules = parser.add_argument_group("rules")
        rules.add_argument(
            "--policy_config",
            help="YAML or JSON file, local or on gs://, with thresholds that override the built-in ones.",
        )
        rules.add_argument(
            "--consent",
            choices=CONSENT_MODES,
            default="enforce",
            help="enforce allows unknown but not revoked consent; require: only granted; off: all.",
        )
        rules.add_argument(
            "--prescribed_sessions_per_week",
            type=int,
            default=7,
            help="Used until an event states the patient's own number.",
        )
        rules.add_argument(
            "--nudge_max_age_hours",
            type=float,
            default=24,
            help="An event older than this updates projections but emits no nudge; 0: no limit.",
        )
        operation = parser.add_argument_group("operation")
        operation.add_argument(
            "--rebuild_days",
            type=int,
            default=0,
            help="For a job that starts without state: first seek the subscriptions back by this many days.",
        )
        operation.add_argument(
            "--metrics_file",
            help="With the DirectRunner: JSON file that the job keeps up to date with its metrics.",
        )
        shown = parser.add_argument_group("what a bounded run prints with the DirectRunner")
        shown.add_argument(
            "--quiet",
            action="store_true",
            help="For scripts: print no progress and no account, only one sentence for each problem.",
        )
        shown.add_argument(
            "--verbose",
            action="store_true",
            help="Also print Beam's own log, and the stack trace of a failure.",
        )
        shown.add_argument(
            "--fail_on_dead_letters",
            action="store_true",
            help="Exit with status 3 if there are dead letters; the results are still written.",
        )

    @property
    def is_bounded(self) -> bool:
        """Whether the run ends with its input."""
        return bool(self.input_files)

    @property
    def runner_name(self) -> str:
        """The runner's name as the command line states it; DirectRunner if it does not."""
        return str(self.view_as(StandardOptions).runner or "DirectRunner")

    @property
    def runs_on(self) -> Runner:
        """The kind of runner that executes the graph."""
        return Runner.named(self.runner_name)

    @property
    def is_bounded_here(self) -> bool:
        """Whether the run ends with its input and runs in this process."""
        return self.is_bounded and self.runs_on is Runner.DIRECT

    def states(self, *names: str) -> bool:
        """Whether the command line states one of these options, Beam's or the pipeline's own."""
        return any(flag.partition("=")[0] in {f"--{name}" for name in names} for flag in self._flags or ())

    @property
    def subscriptions(self) -> dict[str, str]:
        """The subscriptions to read, by role: primary, secondary."""
        stated = {"primary": self.primary_subscription, "secondary": self.secondary_subscription}
        return {role: subscription for role, subscription in stated.items() if subscription}

    @property
    def input_patterns(self) -> list[str]:
        """The paths and globs of the files to read."""
        return [pattern.strip() for pattern in self.input_files.split(",") if pattern.strip()]

    @property
    def job_name(self) -> str:
        """The job name that dead letters carry."""
        return self.view_as(GoogleCloudOptions).job_name or "rehab-tracking"

    def as_dict(self) -> dict[str, Any]:
        """The values of the pipeline's own options, by name."""
        declared = argparse.ArgumentParser(add_help=False)
        self._add_argparse_args(declared)
        return {name: getattr(self, name) for name in vars(declared.parse_args([]))}

    def settings(self, rebuilt_since_us: int | None = None) -> RuleSettings:
        """The rules' settings; `rebuilt_since_us` is where a rebuild starts, in µs since the epoch.

        Raises OptionsError if the policy file is invalid.
        """
        return RuleSettings(
            policy=_policy(self.policy_config),
            consent=self.consent,
            prescribed_sessions_per_week=self.prescribed_sessions_per_week,
            nudge_max_age_hours=self.nudge_max_age_hours,
            rebuilt_since_us=rebuilt_since_us,
        )


class _Parser(_BeamArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionsError(message.removeprefix("argument ").strip().rstrip(".") + ".")


def parse_options(arguments: Sequence[str]) -> RehabOptions:
    """Parses and checks a command line.

    Raises OptionsError for an unknown option, an invalid value, or contradictory options.
    """
    if {"--help", "-h"} & set(arguments):
        RehabOptions(["--help"])
    # Beam ignores unknown flags, so a misspelt option would silently have no effect.
    strict = _Parser(add_help=False, allow_abbrev=False)
    for declared in {str(cls): cls for cls in PipelineOptions.__subclasses__()}.values():
        declared._add_argparse_args(strict)
    known, unknown = strict.parse_known_args(list(arguments))
    # Dataflow checks a template's parameters against its metadata, and a later launcher may add options that
    # this version of Beam does not know.
    if unknown and not known.template_location:
        strict.error(f"unrecognized arguments: {' '.join(unknown)}")
    options = RehabOptions(list(arguments))
    _set_container_image(options)
    for problem in _problems(options):
        raise OptionsError(problem)
    options.view_as(StandardOptions).streaming = not options.is_bounded
    _set_parallelism(options)
    _keep_samples_out(options)
    # Workers need nothing from the main module, but on Dataflow Beam would send it by default.
    setup = options.view_as(SetupOptions)
    setup.save_main_session = bool(setup.save_main_session)
    return options


def _set_parallelism(options: RehabOptions) -> None:
    """Copies `processors` to the option that each runner has for it."""
    options.view_as(DebugOptions).number_of_worker_harness_threads = options.processors
    options.view_as(FlinkRunnerOptions).parallelism = options.processors


def _keep_samples_out(options: RehabOptions) -> None:
    """Otherwise Dataflow copies the elements that a step failed on, patient data, to the temporary bucket."""
    if options.runs_on is Runner.DATAFLOW:
        options.view_as(DebugOptions).add_experiment("disable_always_on_exception_sampling")


def _set_container_image(options: RehabOptions) -> None:
    worker = options.view_as(WorkerOptions)
    if options.runs_on is Runner.DATAFLOW and not worker.sdk_container_image:
        worker.sdk_container_image = os.environ.get(IMAGE_VARIABLE)


def _problems(options: RehabOptions) -> Iterator[str]:
    yield from _source_problems(options)
    yield from _sink_problems(options)
    yield from _value_problems(options)
    yield from _runner_problems(options)
    yield from _display_problems(options)
    try:
        options.settings()
    except OptionsError as error:
        yield str(error)


def _source_problems(options: RehabOptions) -> Iterator[str]:
    if options.is_bounded and options.subscriptions:
        yield "--input_files cannot go with a subscription: a run reads either files or Pub/Sub."
    if options.is_bounded and options.view_as(StandardOptions).streaming:
        yield "--streaming cannot go with --input_files: a run over files is bounded."
    yield from _file_problems(options) if options.is_bounded else _subscription_problems(options)


def _file_problems(options: RehabOptions) -> Iterator[str]:
    if not options.input_patterns:
        yield "--input_files names no file."


def _subscription_problems(options: RehabOptions) -> Iterator[str]:
    if not options.subscriptions:
        yield "There is nothing to read: give --primary_subscription, or --input_files."
    elif not options.primary_subscription:
        yield "--secondary_subscription needs --primary_subscription."
    elif options.primary_subscription == options.secondary_subscription:
        yield "--primary_subscription and --secondary_subscription must not be the same."
    for role, subscription in options.subscriptions.items():
        if not SUBSCRIPTION.fullmatch(subscription):
            yield f"--{role}_subscription must have the form projects/PROJECT/subscriptions/NAME."


def _sink_problems(options: RehabOptions) -> Iterator[str]:
    if not options.dataset and not options.output_dir:
        yield "There is nowhere to write: give --dataset, or --output_dir with --input_files."
    if options.output_dir and not options.is_bounded:
        yield "--output_dir needs --input_files: a stream writes to --dataset."
    if options.overwrite and not options.output_dir:
        yield "--overwrite needs --output_dir."
    if options.nudge_topic and options.is_bounded:
        yield "--nudge_topic cannot go with --input_files: a bounded run writes nudges to --output_dir."
    if not options.nudge_topic and not options.is_bounded:
        yield "--nudge_topic is required with a subscription: without it nudges would be lost."
    if options.nudge_topic and not TOPIC.fullmatch(options.nudge_topic):
        yield "--nudge_topic must have the form projects/PROJECT/topics/NAME."
    if options.dataset and not DATASET.fullmatch(options.dataset):
        yield "--dataset must have the form PROJECT.DATASET."


def _value_problems(options: RehabOptions) -> Iterator[str]:
    ranges = {
        "processors": (1, 1000),
        "batchers": (1, 1000),
        "batch_size": (1, 50_000),
        "batch_timeout_ms": (1, 600_000),
        "prescribed_sessions_per_week": (1, 21),
        "rebuild_days": (0, MAX_REBUILD_DAYS),
        "nudge_max_age_hours": (0, 24 * 366),
    }
    for name, (lowest, highest) in ranges.items():
        if not lowest <= getattr(options, name) <= highest:
            yield f"--{name} must be from {lowest} to {highest}."
    if options.rebuild_days and options.is_bounded:
        yield "--rebuild_days cannot go with --input_files: only subscriptions can be sought back."


def _runner_problems(options: RehabOptions) -> Iterator[str]:
    if options.view_as(DebugOptions).number_of_worker_harness_threads not in (None, options.processors):
        yield "--number_of_worker_harness_threads is set by --processors."
    if options.rebuild_days and options.view_as(GoogleCloudOptions).update:
        yield "--rebuild_days cannot go with --update: with the state kept, events would count twice."
    if options.rebuild_days and options.view_as(TestOptions).dry_run:
        yield "--rebuild_days cannot go with --dry_run: the subscriptions would really be sought back."
    if options.metrics_file and options.runs_on is not Runner.DIRECT:
        yield "--metrics_file needs the DirectRunner: other runners have metrics services of their own."
    if options.overwrite and options.runs_on is not Runner.DIRECT:
        yield "--overwrite needs the DirectRunner: elsewhere results would go before new ones come."
    if options.runs_on is Runner.DATAFLOW:
        yield from _dataflow_problems(options)


def _display_problems(options: RehabOptions) -> Iterator[str]:
    for name in ("quiet", "verbose", "fail_on_dead_letters"):
        if getattr(options, name) and not options.is_bounded_here:
            yield f"--{name} needs --input_files and the DirectRunner: only such a run ends with an account."
    if options.quiet and options.verbose:
        yield "--quiet cannot go with --verbose."


def _dataflow_problems(options: RehabOptions) -> Iterator[str]:
    cloud = options.view_as(GoogleCloudOptions)
    if cloud.template_location and not options.view_as(WorkerOptions).sdk_container_image:
        yield "--template_location needs --sdk_container_image: else workers lack this project's code."
    if cloud.enable_hot_key_logging:
        yield "--enable_hot_key_logging would write patients' ids to the log."
    if options.view_as(DebugOptions).lookup_experiment(_DATA_SAMPLING):
        yield f"--experiments={_DATA_SAMPLING} would copy patients' data to where nothing protects it."
    for name in ("project", "region", "temp_location"):
        if not getattr(cloud, name):
            yield f"--runner=DataflowRunner needs --{name}."
    for name in ("temp_location", "staging_location"):
        # Otherwise Beam looks for a default bucket on the network.
        if not _BUCKET_FOLDER.fullmatch(getattr(cloud, name) or "gs://any/"):
            yield f"--{name} must have the form gs://BUCKET/FOLDER."
    for name in ("input_files", "output_dir"):
        value = getattr(options, name)
        if value and not all(part.startswith("gs://") for part in value.split(",")):
            yield f"--{name} must be on Cloud Storage (gs://…) with the DataflowRunner."


def _policy(path: str | None) -> Policy:
    if not path:
        return Policy()
    path = usable_path("--policy_config", path)
    try:
        with FileSystems.open(path) as file:
            return policy_from(yaml.safe_load(file.read().decode()))
    except OSError as error:
        raise OptionsError(f"--policy_config: {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise OptionsError(f"--policy_config: {path} is neither YAML nor JSON.") from None
    except ValueError as error:
        raise OptionsError(f"--policy_config: {path}: {error}.") from None

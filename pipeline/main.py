"""The job: `python -m pipeline.main --help`."""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import apache_beam as beam
from apache_beam.options.pipeline_options import TestOptions
from apache_beam.runners.runner import PipelineResult
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from pipeline.cloud.files import InputFile, find_files
from pipeline.direct.cores import use_cores
from pipeline.engines import runner_for
from pipeline.errors import InputFileError, OperatorError, OptionsError, refusal
from pipeline.graph import build
from pipeline.interruption import Interruption, Stopped
from pipeline.options import RehabOptions, parse_options
from pipeline.preflight import check, watched
from pipeline.rebuild import planned_rebuild, seek
from pipeline.reporting.account import UNUSABLE, tell_outcome
from pipeline.reporting.logs import logs, show_own_only
from pipeline.reporting.meter import UNMETERED
from pipeline.reporting.metrics_file import MetricsFile
from pipeline.reporting.progress import Progress
from pipeline.runners import Runner
from pipeline.sinks.results import refuse_results, results_folder

_STOPPED = "Stopped; what was not finished will be delivered again."
_STOPPED_OVER_FILES = "Stopped; nothing is written."
_STOPPED_INTO_TABLES = "Stopped; rows that BigQuery has taken stay, and another run writes them all."
# Beam's message when a worker process has died.
_LOST_WORKER = "Channel closed prematurely."
# An InputFileError as it comes out of a worker; out of another process, it is in a traceback.
_FILE_FAULT = re.compile(
    r"^(?:pipeline\.errors\.InputFileError: )?(The input file .+?)(?: \[while .*)?$", re.MULTILINE
)


type SignalBlock = Callable[[], AbstractContextManager[None]]


def launch(
    options: RehabOptions, progress: Progress | None = None, deferred: SignalBlock = nullcontext
) -> PipelineResult:
    """Builds and starts the job; the options must have been checked. A bounded run reports to `progress`.

    `deferred` defers signals while the graph is built. Raises OptionsError for input files that cannot be
    read, and for options that Beam itself refuses.
    """
    # Beam swallows what a signal raises in some of the calls that build a graph.
    with deferred():
        files = _input_files(options)
        if options.is_bounded_here:
            use_cores(options, files)
        pipeline = _empty_pipeline(options)
        rebuild = planned_rebuild(options)
        build(pipeline, options, files, progress.meter if progress else UNMETERED, rebuild)
    if options.runs_on is Runner.DIRECT:
        check(options)
    if rebuild:
        seek(options, rebuild)
    with progress.over(files) if progress else nullcontext():
        return _run(pipeline)


def _run(pipeline: beam.Pipeline) -> PipelineResult:
    try:
        return pipeline.run()
    except RuntimeError as error:
        if str(error) != _LOST_WORKER:
            raise
        raise OperatorError(
            "A worker process was killed, perhaps for lack of memory: try --direct_num_workers=1."
        ) from None


def _input_files(options: RehabOptions) -> list[InputFile]:
    if not options.is_bounded:
        return []
    if options.view_as(TestOptions).dry_run:
        # Only the graph is wanted: stay off the network.
        return [InputFile(pattern, None) for pattern in options.input_patterns]
    return find_files("--input_files", options.input_patterns)


def _empty_pipeline(options: RehabOptions) -> beam.Pipeline:
    try:
        return beam.Pipeline(runner=runner_for(options), options=options)
    except (AttributeError, ImportError, ValueError) as error:
        # Unknown runner, or Beam's own option checks: a heading, then a line for each problem.
        sentence, _, _ = str(error).splitlines()[-1].partition(". ")
        raise OptionsError(sentence.rstrip(".") + ".") from None


def run(options: RehabOptions, interruption: Interruption | None = None) -> int:
    """Runs the job, or on Dataflow submits it; returns the exit status.

    `interruption` is what turns signals into exceptions, if anything does.
    """
    if not options.is_bounded_here:
        _execute(options, interruption)
        return 0
    began, output_dir = time.monotonic(), options.output_dir
    with nullcontext() if options.quiet else Progress(in_lines=options.verbose) as progress:
        result = _execute(options, interruption, progress)
        seconds = time.monotonic() - began
        unusable = tell_outcome(result, output_dir, options.dataset, progress, seconds)
    return UNUSABLE if unusable and options.fail_on_dead_letters else 0


def _execute(
    options: RehabOptions,
    interruption: Interruption | None,
    progress: Progress | None = None,
) -> PipelineResult:
    deferred = interruption.deferred if interruption else nullcontext
    completing = interruption.completing if interruption else nullcontext
    with ExitStack() as stack:
        is_direct = options.runs_on is Runner.DIRECT
        if options.output_dir and is_direct:
            folder = results_folder(options.output_dir, options.overwrite, completing)
            options.output_dir = stack.enter_context(folder)
        elif options.output_dir and not options.view_as(TestOptions).dry_run:
            refuse_results(options.output_dir)
        result = launch(options, progress, deferred)
        if not is_direct:
            return result
        if options.metrics_file:
            stack.enter_context(MetricsFile(options.metrics_file, options, result))
            stack.enter_context(watched(options))
        result.wait_until_finish()
    return result


def main(
    arguments: Sequence[str] | None = None,
    interruption: Interruption | None = None,
) -> int:
    """The command; returns the exit status.

    2 for invalid options, 1 for a failed job, 3 for dead letters with `--fail_on_dead_letters`, 128 plus the
    signal's number for a signal. `interruption` is what turns signals into exceptions, if anything does.
    """
    with logs() as handler:
        return _main(arguments, interruption, handler)


def _main(
    arguments: Sequence[str] | None,
    interruption: Interruption | None,
    handler: logging.Handler,
) -> int:
    stopped = _STOPPED
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        if options.is_bounded_here and not options.verbose:
            show_own_only(handler, "pipeline.main")
        if options.is_bounded:
            stopped = _STOPPED_OVER_FILES if options.output_dir else _STOPPED_INTO_TABLES
        return run(options, interruption)
    except OptionsError as error:
        print(f"pipeline.main: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"pipeline.main: {stopped}", file=sys.stderr)
        return 128 + stop.signum
    except (InputFileError, RuntimeError) as error:
        fault = _FILE_FAULT.search(str(error))
        if fault is None:
            raise
        print(f"pipeline.main: {fault[1]}", file=sys.stderr)
        return 1
    except OperatorError as error:
        print(f"pipeline.main: {error}", file=sys.stderr)
        return 1
    except (GoogleAPIError, GoogleAuthError) as error:
        print(f"pipeline.main: Google refused: {refusal(error)}", file=sys.stderr)
        return 1


def _command() -> None:
    status = main(interruption=Interruption())
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit waits for all threads, and one may be waiting for BigQuery for minutes.
    os._exit(status)


if __name__ == "__main__":
    _command()

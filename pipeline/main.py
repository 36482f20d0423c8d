"""The job: `python -m pipeline.main --help`."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from pipeline.errors import OperatorError, refusal
from pipeline.graph import build
from pipeline.metrics_file import MetricsFile
from pipeline.options import OptionsError, RehabOptions, parse_options, runner_name
from pipeline.preflight import check, watched
from pipeline.processes import Interruption, Stopped
from pipeline.rebuild import seek
from pipeline.runners import runner_for

_LOGGER = logging.getLogger(__name__)


def launch(options: RehabOptions) -> PipelineResult:
    """Builds and starts the job of checked options. Raises OptionsError for what only Beam can tell."""
    pipeline = _empty_pipeline(options)
    build(pipeline, options)
    if runner_name(options).endswith("DirectRunner"):
        check(options)
    if options.rebuild_days:
        seek(options)
    return pipeline.run()


def _empty_pipeline(options: RehabOptions) -> beam.Pipeline:
    try:
        return beam.Pipeline(runner=runner_for(options), options=options)
    except (AttributeError, ImportError, ValueError) as error:
        # No such runner, or Beam's own checks of its options: a heading, then a line for each problem.
        sentence, _, _ = str(error).splitlines()[-1].partition(". ")
        raise OptionsError(sentence.rstrip(".") + ".") from None


def run(options: RehabOptions) -> None:
    """Runs the job; where that is the runner's way (Dataflow), only until it is submitted."""
    result = launch(options)
    if not runner_name(options).endswith("DirectRunner"):
        return
    with ExitStack() as stack:
        if options.metrics_file:
            stack.enter_context(MetricsFile(options.metrics_file, options, result))
            stack.enter_context(watched(options))
        result.wait_until_finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for options that do not work, 1 for a job that fails, 128 + its number for a signal."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        run(parse_options(sys.argv[1:] if arguments is None else arguments))
    except OptionsError as error:
        print(f"pipeline.main: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        _LOGGER.info("Stopped; what was not finished will be delivered again.")
        return 128 + stop.signum
    except OperatorError as error:
        print(f"pipeline.main: {error}", file=sys.stderr)
        return 1
    except (GoogleAPIError, GoogleAuthError) as error:
        print(f"pipeline.main: Google refused: {refusal(error)}", file=sys.stderr)
        return 1
    return 0


def _command() -> None:
    Interruption()
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Python would first wait for its threads, and one may be waiting for BigQuery for minutes.
    os._exit(status)


if __name__ == "__main__":
    _command()

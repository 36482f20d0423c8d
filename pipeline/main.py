"""The job: `python -m pipeline.main --help`."""

import logging
import sys
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult

from pipeline.graph import build
from pipeline.metrics_file import MetricsFile
from pipeline.options import OptionsError, RehabOptions, parse_options, runner_name
from pipeline.rebuild import rebuild
from pipeline.runners import runner_for

_LOGGER = logging.getLogger(__name__)


def launch(options: RehabOptions) -> PipelineResult:
    """Builds and starts the job of checked options."""
    pipeline = beam.Pipeline(runner=runner_for(options), options=options)
    build(pipeline, options)
    if options.rebuild_days:
        rebuild(options)
    return pipeline.run()


def run(options: RehabOptions) -> None:
    """Runs the job; where that is the runner's way (Dataflow), only until it is submitted."""
    result = launch(options)
    if not runner_name(options).endswith("DirectRunner"):
        return
    with MetricsFile(options.metrics_file, result):
        result.wait_until_finish()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 for options that do not work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
    except OptionsError as error:
        print(f"pipeline.main: {error}", file=sys.stderr)
        return 2
    try:
        run(options)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

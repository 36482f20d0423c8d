"""Which runner executes the graph."""

import shlex
import sys

from apache_beam.options.pipeline_options import DirectOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from pipeline.options import RehabOptions, runner_name


def runner_for(options: RehabOptions) -> PipelineRunner:
    """The runner that the options name.

    Beam's own "DirectRunner" chooses between two engines, after it has tried to download a third. Here the
    choice is made at once: the fast engine for a bounded run, the one that can stream for a stream.
    """
    name = runner_name(options)
    if not name.endswith("DirectRunner"):
        return create_runner(name)
    if options.is_bounded:
        return FnApiRunner(_workers(options))
    from pipeline.direct import StreamingDirectRunner

    return StreamingDirectRunner()


def _workers(options: RehabOptions) -> SubprocessSDKEnvironment | None:
    """How to start the workers of a run in several processes; None for a run in this one."""
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode != "multi_processing":
        return None
    # With a mode of its own, Beam starts workers that print a stack trace of whatever fails.
    direct.direct_running_mode = None
    command = f"exec {shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    return SubprocessSDKEnvironment.from_command_string(
        command if options.verbose else f"{command} 2>/dev/null"
    )

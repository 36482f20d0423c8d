"""Makes the Beam runner that executes the graph."""

from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipeline.options import RehabOptions
from pipeline.runners import Runner


def runner_for(options: RehabOptions) -> PipelineRunner:
    """The runner that the options name.

    Beam's own "DirectRunner" tries to download one engine, then chooses between two others. Here the choice
    is fixed: the fast engine for a bounded run, the one with processing-time timers for a stream.
    """
    if options.runs_on is not Runner.DIRECT:
        return create_runner(options.runner_name)
    # Imported here because these modules require one version of Beam, which other runners do not.
    if options.is_bounded:
        from pipeline.direct.workers import worker_environment

        return FnApiRunner(worker_environment(options))
    from pipeline.direct.runner import StreamingDirectRunner

    return StreamingDirectRunner()

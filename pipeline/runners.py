"""Which runner executes the graph."""

from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

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
        # Imported here because it is tied to one version of Beam, which other runners need not be.
        from pipeline.direct.workers import worker_environment

        return FnApiRunner(worker_environment(options))
    from pipeline.direct.runner import StreamingDirectRunner

    return StreamingDirectRunner()

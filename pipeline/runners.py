"""Which runner executes the graph."""

from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipeline.options import RehabOptions, runner_name


def runner_for(options: RehabOptions) -> PipelineRunner:
    """The runner that the options name.

    "DirectRunner" means two machines to Beam, and it would look for a third one on the network first;
    so the right one is named: the fast one for a bounded run, the one that can stream for a stream.
    """
    name = runner_name(options)
    if not name.endswith("DirectRunner"):
        return create_runner(name)
    if options.is_bounded:
        return FnApiRunner()
    from pipeline.direct import StreamingDirectRunner

    return StreamingDirectRunner()

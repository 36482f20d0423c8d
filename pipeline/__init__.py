"""The job: options, sources and sinks, the graph, runners and the operator's commands."""

"""Tagged outputs that know their types, so that each gets its coder."""

from typing import Any

import apache_beam as beam


def tagged(dofn: beam.DoFn, types: dict[str, type]) -> Any:
    """The ParDo of a DoFn that has nothing but tagged outputs: tag → element type."""
    return beam.ParDo(dofn).with_output_types(Any, **types).with_outputs(*types)

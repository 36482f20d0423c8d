"""Tagged and joined collections that know their types, so that each gets its coder."""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

# Not for a DoFn's `process`: Beam reads types from its annotations, and takes one literal tag there.
Tagged = TaggedOutput[str, Any]


def tagged(dofn: beam.DoFn, types: dict[str, type]) -> Any:
    """The ParDo of a DoFn that has nothing but tagged outputs: tag → element type."""
    return beam.ParDo(dofn).with_output_types(Any, **types).with_outputs(*types)


def together(collections: Sequence[Any], element: type) -> Any:
    """One collection of the elements of several."""
    # Not for one alone: a runner may write down, and read again, what it flattens.
    if len(collections) == 1:
        return collections[0]
    return tuple(collections) | "All" >> beam.Flatten().with_output_types(element)

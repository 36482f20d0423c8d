"""Tagged and merged collections with types, so that each gets its coder."""

from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

# Not for a DoFn's `process`: Beam reads types from its annotations, and takes one literal tag there.
Tagged = TaggedOutput[str, Any]


def tagged(dofn: beam.DoFn, types: dict[str, type]) -> Any:
    """The ParDo of a DoFn with tagged outputs only; `types` are their element types by tag."""
    return beam.ParDo(dofn).with_output_types(Any, **types).with_outputs(*types)


def together(collections: Sequence[Any], element: type) -> Any:
    """One collection with the elements of several."""
    # Not for a single collection, because a runner may write and read again what it flattens.
    if len(collections) == 1:
        return collections[0]
    return tuple(collections) | "All" >> beam.Flatten().with_output_types(element)

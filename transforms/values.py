"""What the values have in common that travel through the pipeline by the million."""

import msgspec


class Value(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Immutable, encoded as an array; made without a call into Python, and never part of a cycle."""

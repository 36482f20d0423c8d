"""The base of the values that travel through the pipeline by the million."""

import msgspec


class Value(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Immutable, encoded as an array, cheap to create, and invisible to the cycle collector."""

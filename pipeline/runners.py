"""The runners that the job treats differently."""

from enum import Enum, auto


class Runner(Enum):
    """Which kind of runner executes the graph."""

    DIRECT = auto()
    DATAFLOW = auto()
    OTHER = auto()

    @classmethod
    def named(cls, name: str) -> "Runner":
        """The kind of the runner that `--runner` names; Beam also takes the full path of a class."""
        if name.endswith("DirectRunner"):
            return cls.DIRECT
        return cls.DATAFLOW if name.endswith("DataflowRunner") else cls.OTHER

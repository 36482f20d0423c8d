"""Prints the specification of the flex template for an image: `python -m pipeline.template IMAGE`.

It replaces `gcloud dataflow flex-template build`, which omits the streaming modes from the metadata.
"""

import json
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

_IMAGE = re.compile(
    r"[a-z0-9][-.a-z0-9]*(/[a-z0-9][-._a-z0-9]*)+(:[\w][-.\w]{0,127}|@sha256:[0-9a-f]{64})", re.ASCII
)


def specification(image: str) -> dict[str, Any]:
    """Dataflow's `ContainerSpec` for an image in a registry."""
    metadata = json.loads(files("templates").joinpath("metadata.json").read_text(encoding="utf-8"))
    return {
        "image": image,
        "metadata": metadata,
        "sdkInfo": {"language": "PYTHON"},
        "defaultEnvironment": {"enableStreamingEngine": True},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; prints the specification, or one sentence about an invalid image name."""
    stated = sys.argv[1:] if arguments is None else arguments
    if len(stated) != 1 or not _IMAGE.fullmatch(stated[0]):
        print(
            "pipeline.template: give the image as REGISTRY/PATH:TAG or REGISTRY/PATH@DIGEST.", file=sys.stderr
        )
        return 2
    print(json.dumps(specification(stated[0]), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

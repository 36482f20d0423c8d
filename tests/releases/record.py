"""Records what this version's jobs hold, before it is released: `python -m tests.releases.record`."""

import json
import os
import sys

from pipeline.main import launch
from pipeline.options import IMAGE_VARIABLE, parse_options
from tests.pipeline.conftest import IMAGE, launcher_arguments
from tests.releases.recording import RELEASES, ROOT, graph_of, held_by, this_version


def main() -> int:
    """The command; 1 for a version that is out already: its jobs run, and hold what they hold."""
    version = this_version()
    if f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"):
        print(f"Version {version} is released: give pyproject.toml the next version first.", file=sys.stderr)
        return 1
    os.environ[IMAGE_VARIABLE] = IMAGE
    result = launch(parse_options([*launcher_arguments("launch"), "--dry_run=True"]))
    job = result.job  # type: ignore[attr-defined]
    (RELEASES / version).mkdir(exist_ok=True)
    for name, content in (("graph.json", graph_of(job)), ("held.json", held_by(job))):
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (RELEASES / version / name).write_text(text, encoding="utf-8")
    print(f"Recorded version {version} in {(RELEASES / version).relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

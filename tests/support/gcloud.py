"""Google's command line as a judge of commands that nobody runs here."""

import json
import os
import subprocess
from pathlib import Path


def assert_known(command: str, home: Path) -> None:
    """Its own static check: nothing is run, no network, no credentials."""
    checked = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={command}"],
        capture_output=True,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        timeout=120,
    )
    (verdict,) = json.loads(checked.stdout)
    assert verdict["success"], verdict["error_message"]

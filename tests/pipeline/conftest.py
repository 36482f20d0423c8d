"""A Dataflow job as the template's launcher would submit it, built without a network or credentials."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.main import launch
from pipeline.options import IMAGE_VARIABLE, parse_options

BuildJob = Callable[..., Any]

IMAGE = "europe-west1-docker.pkg.dev/rehab-local/rehab-tracking/pipeline:0.1.0"
_LAUNCH_SH = Path(__file__).parents[2] / "templates/launch.sh"
_NAMES = {"PROJECT": "rehab-local", "REGION": "europe-west1", "BUCKET": "my-bucket"}
# gcloud's names of what Dataflow's launcher hands on under Beam's.
_BEAM = {
    "--project": "--project",
    "--region": "--region",
    "--service-account-email": "--service_account_email",
    "--temp-location": "--temp_location",
    "--staging-location": "--staging_location",
    "--max-workers": "--max_num_workers",
    "--additional-experiments": "--experiments",
}
_SWITCHES = {"--enable-streaming-engine": "--enable_streaming_engine", "--update": "--update"}


def launcher_arguments(*arguments: str) -> list[str]:
    """What the launcher starts the job with after `templates/launch.sh ARGUMENTS`."""
    ended = subprocess.run(
        ["bash", _LAUNCH_SH, "--dry-run", *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"], **_NAMES},
        timeout=60,
    )
    job_name, *flags = shlex.split(ended.stdout)[4:]
    launched = [
        "--runner=DataflowRunner",
        f"--job_name={job_name}",
        "--template_location=gs://my-bucket/staging/template_launches/1/job_object",
    ]
    labels = {"goog-dataflow-provided-template-type": "flex"}
    renamed: dict[str, str] = {}
    for flag in flags:
        name, _, value = flag.partition("=")
        if name == "--parameters":
            launched.append(f"--{value}")
        elif name == "--additional-user-labels":
            labels |= dict(pair.split("=") for pair in value.split(","))
        elif name == "--transform-name-mappings":
            renamed |= dict([value.split("=")])
        elif name in _SWITCHES:
            launched.append(_SWITCHES[name])
        elif name != "--template-file-gcs-location":
            launched.append(f"{_BEAM[name]}={value}")
    if renamed:
        launched.append(f"--transform_name_mapping={json.dumps(renamed)}")
    return [*launched, f"--labels={json.dumps(labels)}"]


@pytest.fixture(scope="session")
def build_job() -> Iterator[BuildJob]:
    """Builds the job of `templates/launch.sh launch` with additional options; gives Beam's description."""

    def build(*options: str) -> Any:
        result: Any = launch(parse_options([*launcher_arguments("launch", *options), "--dry_run=True"]))
        return result.job

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(IMAGE_VARIABLE, IMAGE)
        yield build


@pytest.fixture(scope="session")
def job(build_job: BuildJob) -> Any:
    """The job of default options."""
    return build_job()

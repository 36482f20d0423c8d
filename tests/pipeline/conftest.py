"""A Dataflow job as it would be submitted, built without a network or credentials."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.main import launch
from pipeline.options import parse_options

BuildJob = Callable[..., Any]


@pytest.fixture(scope="session")
def build_job() -> BuildJob:
    """Builds a streaming job with additional arguments; gives Beam's description of it."""

    def build(*arguments: str) -> Any:
        options = parse_options(
            [
                "--runner=DataflowRunner",
                "--dry_run=True",
                "--project=rehab-local",
                "--region=europe-west1",
                "--temp_location=gs://my-bucket/temp",
                "--staging_location=gs://my-bucket/staging",
                "--primary_subscription=projects/rehab-local/subscriptions/rehab-primary",
                "--secondary_subscription=projects/rehab-local/subscriptions/rehab-secondary",
                "--nudge_topic=projects/rehab-local/topics/rehab-nudges",
                "--dataset=rehab-local.rehab_tracking",
                *arguments,
            ]
        )
        result: Any = launch(options)
        return result.job

    return build


@pytest.fixture(scope="session")
def job(build_job: BuildJob) -> Any:
    """The job of default options."""
    return build_job()

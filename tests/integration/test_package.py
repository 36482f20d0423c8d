"""What is built is installed into an empty environment, and works there."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
UV = ROOT / ".venv/bin/uv"
PACKAGES = ("ingest", "pipeline", "templates", "transforms")
# What only a checkout needs: the local run with its simulator, the tests, the benchmarks.
NO_PACKAGES = ("benchmarks", "local", "tests")
FORMS = ("*.py", "*.sql", "metadata.json", "bigquery/*.json")
# Of templates/ the wheel has what `pipeline` reads; the rest builds and deploys from a checkout.
NOT_PACKAGED = ("templates/terraform/*", "templates/api/*")
JOB = [
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
]

pytestmark = pytest.mark.long


class Built(NamedTuple):
    sdist: Path
    wheel: Path


def run(command: list[str | Path], cwd: Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and the wheel that is built from it, of a copy: building leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, *NO_PACKAGES, "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", source / "dist", "."], cwd=source)
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return Built(sdist, wheel)


def ours() -> set[str]:
    """The files of this project that the job and the API run from."""
    paths: Iterable[Path] = (
        path for package in PACKAGES for form in FORMS for path in (ROOT / package).rglob(form)
    )
    return {
        str(path.relative_to(ROOT))
        for path in paths
        if not any(path.relative_to(ROOT).match(pattern) for pattern in NOT_PACKAGED)
    }


def test_the_wheel_has_what_runs_and_nothing_else(built: Built) -> None:
    names = {name for name in zipfile.ZipFile(built.wheel).namelist() if ".dist-info/" not in name}
    assert "templates/metadata.json" in names
    assert names == ours()


@pytest.mark.parametrize("package", NO_PACKAGES)
def test_the_wheel_leaves_out_what_only_a_checkout_needs(built: Built, package: str) -> None:
    assert package not in {name.partition("/")[0] for name in zipfile.ZipFile(built.wheel).namelist()}


def test_the_sdist_has_what_the_wheel_is_built_from_and_nothing_else(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    about = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
    assert {name for name in names if ".egg-info/" not in name} == ours() | about


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the locked packages of the job, the wheel, and nothing else."""
    place = tmp_path_factory.mktemp("installed")
    python = place / "venv/bin/python"
    run([UV, "venv", "--python", sys.executable, place / "venv"], cwd=place)
    lock = ROOT / "requirements/runtime.txt"
    run([UV, "pip", "sync", "--python", python, "--require-hashes", lock], cwd=place)
    run([UV, "pip", "install", "--python", python, "--no-deps", "--offline", built.wheel], cwd=place)
    return python


def test_what_is_installed_fits_together(installed: Path) -> None:
    run([UV, "pip", "check", "--python", installed], cwd=installed.parent)


def test_the_installed_package_builds_the_dataflow_job(installed: Path) -> None:
    run([installed, "-m", "pipeline.main", *JOB], cwd=installed.parent)
    # As a file of its own, as the template's image has it.
    shutil.copy(ROOT / "pipeline/main.py", installed.parent)
    run([installed, installed.parent / "main.py", *JOB], cwd=installed.parent)


def test_the_installed_package_brings_its_files(installed: Path, tmp_path: Path) -> None:
    run([installed, "-m", "pipeline.template", "registry/pipeline:0.1.0"], cwd=tmp_path)
    show = (
        "from pipeline.operations.provisioning import table_definition\n"
        "from pipeline.tables import TABLES\n"
        "for table in TABLES: print(len(table_definition('rehab-local.rehab_tracking', table).schema))"
    )
    assert all(int(columns) > 3 for columns in run([installed, "-c", show], cwd=tmp_path).split())


def test_the_wheel_asks_for_the_beam_that_is_locked(installed: Path) -> None:
    show = "from importlib.metadata import version; print(version('apache-beam'))"
    assert run([installed, "-c", show], cwd=installed.parent).strip() == version("apache-beam")

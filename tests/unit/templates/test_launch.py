"""templates/launch.sh says what it would run, and gcloud itself is asked whether it knows those commands."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.gcloud import assert_known
from tests.unit.pipeline.test_template import PARAMETERS

ROOT = Path(__file__).parents[3]
NAMES = {"PROJECT": "my-project", "REGION": "europe-west3", "BUCKET": "my-bucket"}

LAUNCH = [
    *("gcloud", "dataflow", "flex-template", "run", "rehab-tracking"),
    *("--project=my-project", "--region=europe-west3"),
    "--template-file-gcs-location=gs://my-bucket/templates/rehab-tracking.json",
    "--service-account-email=rehab-worker@my-project.iam.gserviceaccount.com",
    *("--temp-location=gs://my-bucket/temp", "--staging-location=gs://my-bucket/staging"),
    "--enable-streaming-engine",
    "--additional-user-labels=app=rehab-tracking",
    "--parameters=primary_subscription=projects/my-project/subscriptions/rehab-primary",
    "--parameters=secondary_subscription=projects/my-project/subscriptions/rehab-secondary",
    "--parameters=nudge_topic=projects/my-project/topics/rehab-nudges",
    "--parameters=dataset=my-project.rehab_tracking",
]
LIST = [
    *("gcloud", "dataflow", "jobs", "list", "--project=my-project", "--region=europe-west3"),
    *("--status=active", "--filter=name=rehab-tracking", "--format=value(id)"),
]
BUILD = [
    *("gcloud", "builds", "submit", str(ROOT), "--project=my-project", "--region=europe-west3"),
    f"--config={ROOT}/templates/cloudbuild.yaml",
    "--gcs-source-staging-dir=gs://my-bucket/builds",
    "--substitutions=_IMAGES=europe-west3-docker.pkg.dev/my-project/rehab-tracking,_BUCKET=my-bucket,_TAG=0.1.0",
]
PLACE = ["--project=my-project", "--region=europe-west3"]
KEEP = ["--snapshot-sources=true", "--snapshot-ttl=7d"]


def launch_sh(
    arguments: list[str], script: Path = ROOT / "templates/launch.sh", /, **names: str
) -> subprocess.CompletedProcess[str]:
    """The script with nothing in its environment but PATH and those names."""
    return subprocess.run(
        ["bash", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], **names},
        timeout=60,
    )


def planned(
    arguments: list[str], script: Path = ROOT / "templates/launch.sh", /, **names: str
) -> list[list[str]]:
    """The commands that a dry run prints."""
    ended = launch_sh(["--dry-run", *arguments], script, **(NAMES | names))
    assert (ended.returncode, ended.stderr) == (0, "")
    return [shlex.split(line) for line in ended.stdout.splitlines()]


PLANS: list[tuple[list[str], dict[str, str], list[list[str]]]] = [
    (["build"], {"TAG": "0.1.0"}, [BUILD]),
    (["launch"], {}, [LAUNCH]),
    (
        [
            "launch",
            "--batchers=4",
            "--policy_config=gs://b/p.yaml",
            "--",
            "--max-workers=20",
            "--disable-public-ips",
        ],
        {},
        [
            [
                *LAUNCH,
                *("--parameters=batchers=4", "--parameters=policy_config=gs://b/p.yaml"),
                *("--max-workers=20", "--disable-public-ips"),
            ]
        ],
    ),
    (
        ["launch"],
        {"JOB": "other"},
        [[word.replace("rehab-tracking", "other", 1) if i == 4 else word for i, word in enumerate(LAUNCH)]],
    ),
    (["update"], {}, [[*LAUNCH, "--update"]]),
    (
        ["update"],
        {"TAG": "0.1.0"},
        [[*(word.replace("tracking.json", "tracking-0.1.0.json") for word in LAUNCH), "--update"]],
    ),
    (["drain"], {}, [LIST, ["gcloud", "dataflow", "jobs", "drain", "JOB_ID", *PLACE]]),
    (["cancel"], {}, [LIST, ["gcloud", "dataflow", "jobs", "cancel", "JOB_ID", *PLACE]]),
    (
        ["snapshot"],
        {},
        [LIST, ["gcloud", "dataflow", "snapshots", "create", "--job-id=JOB_ID", *PLACE, *KEEP]],
    ),
]


@pytest.mark.parametrize(("arguments", "names", "commands"), PLANS, ids=lambda value: str(value)[:40])
def test_a_dry_run_says_what_would_run(
    arguments: list[str], names: dict[str, str], commands: list[list[str]]
) -> None:
    assert planned(arguments, **names) == commands


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("command", [shlex.join(c) for _, _, commands in PLANS for c in commands])
def test_gcloud_knows_the_command(command: str, tmp_path: Path) -> None:
    assert_known(command, tmp_path)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The script in a place of its own."""
    (tmp_path / "templates").mkdir()
    return Path(shutil.copy(ROOT / "templates/launch.sh", tmp_path / "templates"))


def test_renamed_steps_are_handed_on(copied: Path) -> None:
    renamed = "# a comment\n\nTo rows=Rows\nWrite a/Write=Write b/Write\n"
    (copied.parent / "renamed_steps.txt").write_text(renamed)
    assert planned(["update"], copied) == [
        [
            *LAUNCH,
            "--update",
            "--transform-name-mappings=To rows=Rows",
            "--transform-name-mappings=Write a/Write=Write b/Write",
        ]
    ]


def test_a_build_is_named_after_the_commit(copied: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", *who, "-C", str(copied.parents[1]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "--message=c")
    ((*_, substitutions),) = planned(["build"], copied)
    assert substitutions.endswith(f",_TAG={git('rev-parse', '--short=12', 'HEAD')}")
    copied.with_name("more").touch()
    git("add", ".")
    ((*_, substitutions),) = planned(["build"], copied)
    assert substitutions.endswith("-dirty")


def test_what_is_launched_are_parameters_of_the_template() -> None:
    stated = [word.split("=")[1] for word in LAUNCH if word.startswith("--parameters=")]
    assert set(stated) <= set(PARAMETERS)
    required = {name for name, parameter in PARAMETERS.items() if not parameter.get("isOptional")}
    assert required <= set(stated)


@pytest.mark.parametrize(
    ("arguments", "names", "named"),
    [
        ([], NAMES, "Say what to do"),
        (["deploy"], NAMES, "deploy"),
        (["launch", "update"], NAMES, "launch and update"),
        (["launch"], NAMES | {"PROJECT": ""}, "PROJECT"),
        (["launch"], {"PROJECT": "p", "REGION": "r"}, "BUCKET"),
        (["launch", "--batchers", "4"], NAMES, "launch and 4"),
        (["launch", "--batchers"], NAMES, "--OPTION=VALUE"),
        (["launch", "--policy_config=gs://b/a,b"], NAMES, "--policy_config"),
        (["build", "--batchers=4"], NAMES, "build"),
        (["build"], NAMES | {"TAG": "a b"}, "TAG"),
        (["drain", "--batchers=4"], NAMES, "drain"),
        (["snapshot", "--batchers=4"], NAMES, "snapshot"),
    ],
    ids=str,
)
def test_bad_usage_is_one_sentence(arguments: list[str], names: dict[str, str], named: str) -> None:
    ended = launch_sh(["--dry-run", *arguments], **names)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("launch.sh: ")
    assert line.endswith(".")
    assert named in line


def test_it_says_how_it_is_used() -> None:
    ended = launch_sh(["--help"])
    assert ended.returncode == 0
    for command in ("build", "launch", "update", "drain", "cancel", "snapshot", "--dry-run"):
        assert command in ended.stdout


@pytest.mark.parametrize("script", ["templates/launch.sh", "run_local.sh", ".ci/run"])
def test_scripts_are_sound(script: str) -> None:
    shellcheck = ROOT / ".venv/bin/shellcheck"
    checked = subprocess.run(
        [shellcheck, ROOT / script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout) == (0, "")

"""The template's metadata is held to the options, to Dataflow's own form, and to gcloud."""

import argparse
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.cloud.dataflow_v1beta3.types import ContainerSpec, ParameterType, TemplateMetadata

from pipeline.errors import OptionsError
from pipeline.names import DATASET, SUBSCRIPTION, TOPIC
from pipeline.options import RehabOptions, parse_options
from pipeline.template import main, specification

METADATA_FILE = Path(__file__).parents[3] / "templates/metadata.json"
METADATA = json.loads(METADATA_FILE.read_text(encoding="utf-8"))
PARAMETERS: dict[str, dict[str, Any]] = {parameter["name"]: parameter for parameter in METADATA["parameters"]}
IMAGE = "europe-west3-docker.pkg.dev/my-project/rehab-tracking/pipeline:0.1.0"

# The template's job is a stream: files belong to bounded runs, which are launched from a checkout. And only
# the DirectRunner has no metrics service of its own.
NOT_ON_THE_TEMPLATE = {
    *("input_files", "output_dir", "overwrite", "metrics_file"),
    *("quiet", "verbose", "fail_on_dead_letters"),
}

REQUIRED = {
    "primary_subscription": "projects/rehab-local/subscriptions/rehab-primary",
    "nudge_topic": "projects/rehab-local/topics/rehab-nudges",
    "dataset": "rehab-local.rehab_tracking",
}

_PROJECTS = ("rehab-local", "rehab:local.x1", "abcdef", "a" * 63)
_NOT_PROJECTS = ("demo", "Rehab-local", "rehab-local-", "1rehab", "rehab_local", "a" * 64, "")
_NAMES = ("rehab-primary", "abc", "R.e_h~a+b%1", "a" * 255)
_NOT_NAMES = ("ab", "1abc", "-abc", "rehab primary", "rehab/primary", "réhab", "a" * 256, "")


def _paths(kind: str) -> tuple[list[str], list[str]]:
    good = [f"projects/{p}/{kind}/abc" for p in _PROJECTS] + [f"projects/abcdef/{kind}/{n}" for n in _NAMES]
    bad = [f"projects/{p}/{kind}/abc" for p in _NOT_PROJECTS]
    bad += [f"projects/abcdef/{kind}/{n}" for n in _NOT_NAMES]
    return good, [
        *bad,
        f"projects/abcdef/{kind}",
        "abc",
        f"/projects/abcdef/{kind}/abc",
        "projects/abcdef/x/abc",
    ]


def _whole_numbers(lowest: int, highest: int) -> tuple[list[str], list[str]]:
    edges = {lowest, lowest + 1, highest - 1, highest}
    edges |= {n for n in (9, 10, 99, 100, 999, 1000, 9999, 10_000, 99_999) if lowest <= n <= highest}
    return [str(n) for n in sorted(edges)], [str(lowest - 1), str(highest + 1), "-1", "1.5", "1e3", "x", ""]


VALUES: dict[str, tuple[list[str], list[str]]] = {
    "primary_subscription": _paths("subscriptions"),
    "secondary_subscription": _paths("subscriptions"),
    "nudge_topic": _paths("topics"),
    "dataset": (
        [*(f"{p}.rehab_tracking" for p in _PROJECTS), "abcdef.R1", "abcdef._"],
        [*(f"{p}.rehab" for p in _NOT_PROJECTS), "abcdef.", "abcdef:rehab", "abcdef.a-b", "rehab_tracking"],
    ),
    "processors": _whole_numbers(1, 1000),
    "batchers": _whole_numbers(1, 1000),
    "batch_size": _whole_numbers(1, 50_000),
    "batch_timeout_ms": _whole_numbers(1, 600_000),
    "policy_config": (
        ["gs://my-bucket/policy.yaml", "gs://a.b-c_d/x/y z.json"],
        ["/tmp/policy.yaml", "policy.yaml", "gs://my-bucket", "gs://my-bucket/", "gs://My/policy.yaml", ""],
    ),
    "consent": (["enforce", "require", "off"], ["on", "Enforce", "enforce,off", ""]),
    "prescribed_sessions_per_week": _whole_numbers(1, 21),
    "nudge_max_age_hours": (
        ["0", "0.5", "24", "24.0", "999", "1000", "8699", "8700", "8783.99", "8784"],
        ["8785", "8784.1", "9000", "-1", "x", ".", "nan", ""],
    ),
    "rebuild_days": _whole_numbers(0, 31),
}
_CASES = [
    (name, value, good)
    for name, (yes, no) in VALUES.items()
    for good, them in ((True, yes), (False, no))
    for value in them
]


def test_dataflow_accepts_the_metadata() -> None:
    metadata = TemplateMetadata.from_json(METADATA_FILE.read_text(encoding="utf-8"))
    assert [parameter.name for parameter in metadata.parameters] == list(PARAMETERS)
    assert metadata.streaming
    assert metadata.supports_exactly_once
    assert metadata.supports_at_least_once
    assert metadata.default_streaming_mode == "EXACTLY_ONCE"


def _declared() -> tuple[dict[str, argparse.Action], dict[str, str]]:
    parser = argparse.ArgumentParser(add_help=False)
    RehabOptions._add_argparse_args(parser)
    groups = {action.dest: group.title for group in parser._action_groups for action in group._group_actions}
    return {action.dest: action for action in parser._actions}, {
        dest: str(title) for dest, title in groups.items()
    }


def test_every_parameter_is_an_option_and_every_operators_option_a_parameter() -> None:
    options, groups = _declared()
    assert set(options) >= NOT_ON_THE_TEMPLATE
    assert list(PARAMETERS) == [name for name in options if name not in NOT_ON_THE_TEMPLATE]
    for name, parameter in PARAMETERS.items():
        option = options[name]
        assert parameter["helpText"].startswith(str(option.help)), name
        assert parameter.get("defaultValue") == (None if option.default is None else str(option.default)), (
            name
        )
        assert parameter["groupName"] == groups[name].capitalize(), name
        choices = [choice["value"] for choice in parameter.get("enumOptions", [])]
        assert choices == list(option.choices or []), name


def test_what_the_job_cannot_do_without_is_required() -> None:
    required = {name for name, parameter in PARAMETERS.items() if not parameter.get("isOptional")}
    assert required == set(REQUIRED)
    parse_options([f"--{name}={value}" for name, value in REQUIRED.items()])


def test_parameters_of_a_kind_have_its_type() -> None:
    known = ParameterType.__members__
    for name, (good, _) in VALUES.items():
        stated = known[PARAMETERS[name]["paramType"]]
        if good[0].startswith("projects/"):
            assert stated == known[f"PUBSUB_{good[0].split('/')[2][:-1].upper()}"]
        elif good[0].startswith("gs://"):
            assert stated == ParameterType.GCS_READ_FILE
        elif good[0].isdecimal():
            assert stated == ParameterType.NUMBER


def _matches(name: str, value: str) -> bool:
    (expression,) = PARAMETERS[name]["regexes"]
    assert expression.startswith("^")
    assert expression.endswith("$")
    return bool(re.fullmatch(expression, value))


@pytest.mark.parametrize(("name", "value", "good"), _CASES, ids=lambda value: repr(value)[:60])
def test_an_expression_takes_what_is_good_and_nothing_else(name: str, value: str, good: bool) -> None:
    assert _matches(name, value) is good


def test_every_parameter_has_values_that_try_its_expression() -> None:
    assert set(VALUES) == set(PARAMETERS)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("primary_subscription", SUBSCRIPTION),
        ("secondary_subscription", SUBSCRIPTION),
        ("nudge_topic", TOPIC),
        ("dataset", DATASET),
    ],
)
def test_names_have_the_same_form_as_in_the_job(name: str, form: re.Pattern[str]) -> None:
    for value in [value for values in VALUES[name] for value in values]:
        assert bool(form.fullmatch(value)) is _matches(name, value), value


@pytest.mark.parametrize(
    ("name", "value", "good"), [case for case in _CASES if case[0] != "policy_config" and case[1]]
)
def test_the_job_takes_the_values_that_an_expression_takes(name: str, value: str, good: bool) -> None:
    arguments = [f"--{key}={stated}" for key, stated in (REQUIRED | {name: value}).items()]
    if good:
        parse_options(arguments)
    else:
        with pytest.raises(OptionsError):
            parse_options(arguments)


@pytest.mark.parametrize("expression", [e for p in PARAMETERS.values() for e in p["regexes"]])
def test_expressions_are_posix(expression: str) -> None:
    # Dataflow's are: they know no \d or \w, and repeat at most 255 times.
    assert "\\" not in expression
    assert all(int(count) <= 255 for count in re.findall(r"[{,](\d+)[},]", expression))


# --- The specification


def test_dataflow_accepts_the_specification(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([IMAGE]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == specification(IMAGE)
    spec = ContainerSpec.from_json(printed)
    assert spec.image == IMAGE
    assert spec.sdk_info.language.name == "PYTHON"
    assert spec.default_environment.enable_streaming_engine
    assert spec.metadata == TemplateMetadata.from_json(json.dumps(METADATA))


@pytest.mark.parametrize(
    "arguments", [[], [""], ["pipeline"], ["registry/pipeline"], ["Registry/x:1"], [IMAGE, IMAGE]]
)
def test_an_image_that_cannot_be_launched_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("pipeline.template: ")
    assert captured.err.count("\n") == 1


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
def test_gcloud_builds_the_same_specification_but_for_the_modes(tmp_path: Path) -> None:
    command = ["gcloud", "dataflow", "flex-template", "build", "gs://my-bucket/spec.json", f"--image={IMAGE}"]
    command += [f"--metadata-file={METADATA_FILE}", "--sdk-language=PYTHON", "--enable-streaming-engine"]
    built = subprocess.run(
        [*command, "--print-only", "--project=my-project", "--format=json"],
        capture_output=True,
        check=True,
        env={"PATH": f"{Path(str(shutil.which('gcloud'))).parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
        timeout=120,
    )
    spec = json.loads(json.loads(built.stdout))
    modes = {"streaming", "supportsExactlyOnce", "supportsAtLeastOnce", "defaultStreamingMode"}
    expected = specification(IMAGE)
    # When gcloud no longer drops them, its command can take the place of `pipeline.template`.
    expected["metadata"] = {name: value for name, value in METADATA.items() if name not in modes}
    assert spec == expected

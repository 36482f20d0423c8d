"""What can be known of the image without building it: its bases, and that what it names is in it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pathspec
import pytest
import yaml

from pipeline.options import IMAGE_VARIABLE

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "templates/Dockerfile"
CLOUD_BUILD = yaml.safe_load((ROOT / "templates/cloudbuild.yaml").read_text(encoding="utf-8"))

_TEXT = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text(encoding="utf-8"))
INSTRUCTIONS = [line.split(maxsplit=1) for line in _TEXT.splitlines() if line and not line.startswith("#")]


def arguments_of(instruction: str) -> list[list[str]]:
    return [rest.split() for name, rest in INSTRUCTIONS if name == instruction]


def stages() -> dict[str, str]:
    """The base image of each stage by the stage's name; the last one has none."""
    return {words[2] if words[1:2] == ["AS"] else "": words[0] for words in arguments_of("FROM")}


def locked(package: str) -> str:
    match = re.search(
        rf"^{package}(?:\[\w+\])?==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE
    )
    assert match
    return match[1]


def copies() -> list[tuple[str | None, list[str], str]]:
    """(stage or null, sources, destination) of each COPY."""
    result = []
    for words in arguments_of("COPY"):
        stage = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        *sources, destination = [word for word in words if not word.startswith("--")]
        result.append((stage, sources, destination))
    return result


def test_hadolint_finds_nothing() -> None:
    checked = subprocess.run(
        [ROOT / ".venv/bin/hadolint", DOCKERFILE], capture_output=True, text=True, check=False, timeout=60
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_python_and_beam_are_those_of_the_lock() -> None:
    python = (ROOT / ".python-version").read_text().strip()
    bases = stages()
    assert bases["beam"] == f"apache/beam_python{python}_sdk:{locked('apache-beam')}"
    launcher, _, tag = bases["launcher"].partition(":")
    assert (
        launcher == f"gcr.io/dataflow-templates-base/python{python.replace('.', '')}-template-launcher-base"
    )
    assert re.fullmatch(r"\d{8}-rc\d\d", tag)
    assert bases[""] == bases["wheel"]
    assert re.fullmatch(rf"python:{re.escape(python)}\.\d+-slim-[a-z]+", bases[""])


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    for ignored_by in (".dockerignore", ".gitignore"):
        lines = (ROOT / ignored_by).read_text(encoding="utf-8").splitlines()
        spec = pathspec.GitIgnoreSpec.from_lines(lines)
        for stage, sources, _ in copies():
            for source in sources if stage is None else ():
                assert (ROOT / source).exists(), source
                files = [ROOT / source] if (ROOT / source).is_file() else (ROOT / source).glob("*.py")
                for path in files:
                    assert not spec.match_file(path.relative_to(ROOT)), (ignored_by, path)


def test_what_comes_from_other_stages_are_the_two_programs_that_dataflow_starts() -> None:
    assert {(stage, *sources, to) for stage, sources, to in copies() if stage} == {
        ("beam", "/opt/apache/beam", "/opt/apache/beam"),
        ("launcher", *["/opt/google/dataflow/python_template_launcher"] * 2),
    }
    assert INSTRUCTIONS[-1] == ["ENTRYPOINT", '["/opt/apache/beam/boot"]']


def environment() -> dict[str, str]:
    return dict(words[0].split("=", 1) for words in arguments_of("ENV"))


def test_the_environment_names_files_that_are_in_the_image() -> None:
    written = {to: sources for _, sources, to in copies()}
    assert written[environment()["FLEX_TEMPLATE_PYTHON_PY_FILE"]] == ["pipeline/main.py"]
    assert 'if __name__ == "__main__":' in (ROOT / "pipeline/main.py").read_text()
    # A requirements file would make the launcher download packages, a setup file would pack and install one.
    assert {name for name in environment() if name.startswith("FLEX_TEMPLATE")} == {
        "FLEX_TEMPLATE_PYTHON_PY_FILE"
    }


def test_the_image_knows_its_own_name() -> None:
    assert environment()[IMAGE_VARIABLE] == "$IMAGE"
    assert ["ARG", "IMAGE"] in INSTRUCTIONS
    (build,) = [step for step in CLOUD_BUILD["steps"] if step["id"] == "pipeline"]
    (stated,) = [word for word in build["args"] if word.startswith("--build-arg=IMAGE=")]
    (tag,) = [word for word in build["args"] if word.startswith("--tag=")]
    assert stated.removeprefix("--build-arg=IMAGE=") == tag.removeprefix("--tag=")


def test_everything_installed_is_locked_or_ours() -> None:
    installs = [" ".join(words) for words in arguments_of("RUN") if "pip" in words]
    assert len(installs) == 3
    wheel, lock, ours = installs
    assert wheel.startswith("pip wheel ")
    assert "--no-deps" in wheel
    assert "--require-hashes" in lock
    assert ("requirements/runtime.txt", "/template/requirements.txt") in [(s[0], to) for _, s, to in copies()]
    assert "--requirement=/template/requirements.txt" in lock
    assert "--no-index --no-deps" in ours
    assert ours.endswith("&& pip check")


# --- Cloud Build


def steps() -> dict[str, dict[str, Any]]:
    return {step["id"]: step for step in CLOUD_BUILD["steps"]}


def before(step: str) -> set[str]:
    """The steps that have ended when a step begins."""
    names = list(steps())
    earlier = names[: names.index(step)]
    waits = steps()[step].get("waitFor", earlier)
    return {name for wait in waits if wait != "-" for name in ({wait} | before(wait))}


def test_nothing_is_published_before_all_of_it_works() -> None:
    assert before("publish") == set(steps()) - {"publish"}
    assert before("push pipeline") == {"pipeline", "specification"}


def test_the_template_is_put_where_the_launch_looks_for_it() -> None:
    places = [steps()[step]["args"][-1] for step in ("keep", "publish")]
    assert places == [f"gs://${{_BUCKET}}/templates/rehab-tracking{tag}.json" for tag in ("-${_TAG}", "")]
    launch = (ROOT / "templates/launch.sh").read_text(encoding="utf-8")
    assert "gs://$BUCKET/templates/rehab-tracking${TAG:+-$TAG}.json" in launch


def test_every_substitution_is_given_by_the_launch_script() -> None:
    used = set(re.findall(r"\$\{(_\w+)\}", (ROOT / "templates/cloudbuild.yaml").read_text(encoding="utf-8")))
    (line,) = re.findall(
        r'"--substitutions=(.*)"', (ROOT / "templates/launch.sh").read_text(encoding="utf-8")
    )
    assert used == set(re.findall(r"(_[A-Z]+)=", line))


@pytest.mark.parametrize("step", CLOUD_BUILD["steps"], ids=lambda step: str(step["id"]))
def test_a_steps_image_is_pinned_or_ours(step: dict[str, Any]) -> None:
    assert step["name"] in ("gcr.io/cloud-builders/docker", "${_IMAGES}/pipeline:${_TAG}") or re.search(
        r":\d+\.\d+\.\d+", step["name"]
    )

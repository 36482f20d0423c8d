"""The HTTP API's image, and the service that Terraform makes of it, are held to the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.settings import ApiSettings, load_settings, variable

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "templates/api/Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")
SERVICE = (ROOT / "templates/terraform/api.tf").read_text(encoding="utf-8")
API = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ingest").rglob("*.py"))
KNOWN = {variable(name) for name in ApiSettings.model_fields}


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert hadolint
    found = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert found.returncode == 0


def test_the_base_is_pinned_to_the_python_of_the_project() -> None:
    version = (ROOT / ".python-version").read_text().strip()
    assert re.findall(r"^FROM (.*)$", TEXT, re.MULTILINE)
    for base in re.findall(r"^FROM (.*)$", TEXT, re.MULTILINE):
        assert re.fullmatch(rf"python:{re.escape(version)}\.\d+-slim-\w+", base)


def test_everything_that_is_copied_exists_and_all_that_the_api_imports_is_copied() -> None:
    sources = re.findall(r"^COPY (\S+) \S+$", TEXT, re.MULTILINE)
    assert all((ROOT / source).exists() for source in sources)
    ours = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    imported = set(re.findall(r"^(?:from|import) (\w+)", API, re.MULTILINE))
    assert "ingest" in imported & ours
    assert imported & ours <= set(sources)


def test_packages_are_those_of_the_lock_and_nothing_runs_as_root() -> None:
    assert "--require-hashes --requirement=/requirements.txt" in TEXT
    assert "COPY requirements/api.txt /requirements.txt" in TEXT
    assert re.findall(r"^USER (\d+)$", TEXT, re.MULTILINE) == ["10001"]
    assert TEXT.index("USER ") < TEXT.index("CMD ")


def test_the_environment_of_image_and_service_is_settings_of_the_api() -> None:
    in_image = set(re.findall(r"\bREHAB_[A-Z_]+", TEXT))
    in_service = set(re.findall(r'"(REHAB_[A-Z_]+)"', SERVICE))
    (job,) = re.findall(r"\? \{\} : \{ (.*) \}$", SERVICE, re.MULTILINE)
    in_service |= {variable(name.lower()) for name in re.findall(r"(\w+) = ", job)}
    assert {"REHAB_PORT", "REHAB_HOST"} <= in_image <= KNOWN
    assert {"REHAB_PRIMARY_TOPIC", "REHAB_JWT_SECRET", "REHAB_JOB_ID"} <= in_service <= KNOWN
    needed = {variable(name) for name, field in ApiSettings.model_fields.items() if field.is_required()}
    assert needed <= in_image | in_service


def test_the_service_waits_on_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    (of_image,) = re.findall(r"^ENV (.*)$", TEXT, re.MULTILINE)
    stated = dict(pair.split("=", 1) for pair in of_image.split())
    stated |= dict(re.findall(r'name  = "(\w+)"\s+value = "(.*)"', SERVICE))
    stated |= {f"REHAB_{role}_TOPIC": "projects/my-project/topics/name" for role in ("PRIMARY", "SECONDARY")}
    for name, value in (stated | {"REHAB_JWT_SECRET": "s" * 32}).items():
        monkeypatch.setenv(name, value)
    assert load_settings().queue_dir is None


def test_the_service_asks_for_health_where_the_api_tells_it() -> None:
    paths = re.findall(r'path = "(\S+)"', SERVICE)
    assert paths == ["/readyz", "/healthz"]
    assert not [path for path in paths if f'"{path}"' not in API]


def test_the_service_s_port_is_the_api_s() -> None:
    port = str(ApiSettings.model_fields["port"].default)
    assert f"container_port = {port}" in SERVICE
    assert f"REHAB_PORT=${{PORT:-{port}}}" in TEXT

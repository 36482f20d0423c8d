"""The API's settings: what does not work is refused with a sentence that quotes no value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.settings import ApiSettings, SettingsError, load_settings, variable

SECRET = "quillfeather" * 3

Load = Callable[..., ApiSettings]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Loads settings that work, but for those that are given; null leaves one out."""

    def load_with(**changes: Any) -> ApiSettings:
        stated = {
            "primary_topic": "projects/rehab-local/topics/primary",
            "secondary_topic": "projects/rehab-local/topics/secondary",
            "queue_dir": tmp_path,
            "jwt_secret": SECRET,
        } | changes
        for name, value in stated.items():
            if value is None:
                monkeypatch.delenv(variable(name), raising=False)
            else:
                monkeypatch.setenv(variable(name), str(value))
        return load_settings()

    return load_with


def test_the_environment_is_read(load: Load) -> None:
    settings = load(port=4711, jwt_audience="rehab", jwt_issuer="")
    assert (settings.port, settings.host, settings.jwt_audience) == (4711, "127.0.0.1", "rehab")
    # An empty variable states nothing.
    assert settings.jwt_issuer is None
    assert settings.jwt_secret
    assert settings.jwt_secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)


KEYS = "Exactly one of REHAB_JWT_SECRET, REHAB_JWT_PUBLIC_KEY_FILE and REHAB_JWT_JWKS_URL is needed."


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"primary_topic": None},
            "REHAB_PRIMARY_TOPIC is needed: Topic of events, projects/PROJECT/topics/NAME.",
        ),
        (
            {"secondary_topic": "events"},
            "REHAB_SECONDARY_TOPIC: must have the form projects/PROJECT/topics/NAME.",
        ),
        (
            {"port": "quillfeather"},
            "REHAB_PORT: Input should be a valid integer, unable to parse string as an integer.",
        ),
        ({"port": 70_000}, "REHAB_PORT: Input should be less than or equal to 65535."),
        ({"publish_timeout_seconds": 0}, "REHAB_PUBLISH_TIMEOUT_SECONDS: Input should be greater than 0."),
        ({"jwt_secret": "quillfeather"}, "REHAB_JWT_SECRET: must have at least 32 bytes."),
        (
            {"jwt_secret": None, "jwt_public_key_file": "/quillfeather"},
            "REHAB_JWT_PUBLIC_KEY_FILE: must be the path of a file.",
        ),
        ({"jwt_secret": None}, KEYS),
        ({"jwt_jwks_url": "https://keys.example/jwks"}, KEYS),
        (
            {"development": True, "host": "0.0.0.0"},
            "REHAB_DEVELOPMENT works on a loopback address only, such as 127.0.0.1.",
        ),
        (
            {"development": True, "host": "example.org"},
            "REHAB_DEVELOPMENT works on a loopback address only, such as 127.0.0.1.",
        ),
        (
            {"development": True, "jwt_secret": None, "jwt_jwks_url": "https://keys.example/jwks"},
            "REHAB_DEVELOPMENT goes with REHAB_JWT_SECRET, or with no key at all.",
        ),
        (
            {"queue_dir": None},
            "REHAB_QUEUE_DIR is needed, or REHAB_QUEUE_DURABLE=false where there is no durable disk.",
        ),
        ({"queue_durable": False}, "REHAB_QUEUE_DIR and REHAB_QUEUE_DURABLE=false cannot go together."),
        (
            {"queue_durable": False, "queue_dir": None, "queue_max_mb": 5},
            "REHAB_QUEUE_MAX_MB and REHAB_QUEUE_DURABLE=false cannot go together.",
        ),
        ({"jwt_audienc": "rehab"}, "REHAB_JWT_AUDIENC is not a setting."),
    ],
)
def test_what_does_not_work_is_told_in_a_sentence(load: Load, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as problem:
        load(**changes)
    assert str(problem.value) == sentence
    assert "quillfeather" not in str(problem.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_development_works_on_loopback_and_needs_no_key(load: Load, host: str) -> None:
    assert load(development=True, host=host, jwt_secret=None).jwt_secret is None


def test_without_a_durable_disk_no_directory_is_needed(load: Load) -> None:
    assert load(queue_dir=None, queue_durable="false").queue_dir is None

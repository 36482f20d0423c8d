"""Every setting of the API, declared once. Each is an environment variable with the prefix `REHAB_`."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, HttpUrl, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.names import TOPIC

PREFIX = "REHAB_"

# They say which job the status is about.
JOB_SETTINGS = ("metrics_file", "job_id", "project", "region")

# RFC 7518 requires a key as long as the hash. A shorter one can be guessed from a single token.
_MIN_SECRET_BYTES = 32


class SettingsError(ValueError):
    """Settings that are invalid, alone or together; the message is one sentence for the operator."""


def _topic(value: str) -> str:
    if not TOPIC.fullmatch(value):
        raise PydanticCustomError("topic", "must have the form projects/PROJECT/topics/NAME")
    return value


def _secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < _MIN_SECRET_BYTES:
        raise PydanticCustomError("secret", f"must have at least {_MIN_SECRET_BYTES} bytes")
    return value


def _file(value: Path) -> Path:
    if not value.is_file():
        raise PydanticCustomError("file", "must be the path of a file")
    return value


Topic = Annotated[str, AfterValidator(_topic)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
File = Annotated[Path, AfterValidator(_file)]


class ApiSettings(BaseSettings):
    """The API's settings. A field's variable is `REHAB_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        4000, description="Port to listen on; 0 picks a free one."
    )
    primary_topic: Topic = Field(description="Topic of events, projects/PROJECT/topics/NAME.")
    secondary_topic: Topic = Field(description="Topic that gets the events while the primary one fails.")
    queue_durable: bool = Field(
        True,
        description="false where no disk outlives the process: the answer is then 503 instead of 202.",
    )
    queue_dir: Path | None = Field(None, description="Directory for the events that neither topic accepts.")
    queue_max_mb: Annotated[int, Field(ge=1)] = Field(
        1024, description="Its size limit in megabytes; above it, events are refused with 429."
    )
    publish_timeout_seconds: Annotated[float, Field(gt=0, le=60)] = Field(
        2.0, description="How long to wait for a topic to confirm."
    )
    probe_after_seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        2.0, description="How long to wait before a failed topic is tried again."
    )
    jwt_secret: Secret | None = Field(None, description="Secret of HS256 tokens, at least 32 bytes.")
    jwt_public_key_file: File | None = Field(
        None, description="PEM file with the public key of RS256 tokens."
    )
    jwt_jwks_url: HttpUrl | None = Field(None, description="URL of a JWK set with the keys of RS256 tokens.")
    jwt_audience: str | None = Field(None, description="The `aud` that a token must have.")
    jwt_issuer: str | None = Field(None, description="The `iss` that a token must have.")
    metrics_file: Path | None = Field(None, description="The --metrics_file of a job on this machine.")
    job_id: str | None = Field(None, description="Instead of a file, the id of a job on Dataflow.")
    project: str | None = Field(None, description="Project of that job.")
    region: str | None = Field(None, description="Region of that job.")
    development: bool = Field(
        False, description="On a loopback address only: generates a secret and prints a token."
    )

    @model_validator(mode="after")
    def _one_kind_of_key(self) -> Self:
        keys = [self.jwt_secret, self.jwt_public_key_file, self.jwt_jwks_url]
        stated = sum(key is not None for key in keys)
        if stated > 1 or not (stated or self.development):
            raise PydanticCustomError(
                "keys",
                "Exactly one of REHAB_JWT_SECRET, REHAB_JWT_PUBLIC_KEY_FILE and REHAB_JWT_JWKS_URL is needed",
            )
        return self

    @model_validator(mode="after")
    def _a_queue_or_none(self) -> Self:
        if self.queue_durable and not self.queue_dir:
            raise PydanticCustomError(
                "queue",
                "REHAB_QUEUE_DIR is needed, or REHAB_QUEUE_DURABLE=false where there is no durable disk",
            )
        for name in ("queue_dir", "queue_max_mb"):
            if not self.queue_durable and name in self.model_fields_set:
                raise PydanticCustomError(
                    "queue", f"{variable(name)} and REHAB_QUEUE_DURABLE=false cannot go together"
                )
        return self

    @model_validator(mode="after")
    def _one_job(self) -> Self:
        if self.job_id and self.metrics_file:
            raise PydanticCustomError("job", "REHAB_METRICS_FILE and REHAB_JOB_ID cannot go together")
        if bool(self.job_id) != bool(self.project) or bool(self.job_id) != bool(self.region):
            raise PydanticCustomError("job", "REHAB_JOB_ID, REHAB_PROJECT and REHAB_REGION go together")
        return self

    @model_validator(mode="after")
    def _development_stays_at_home(self) -> Self:
        if self.development and not _is_loopback(self.host):
            raise PydanticCustomError(
                "development", "REHAB_DEVELOPMENT works on a loopback address only, such as 127.0.0.1"
            )
        if self.development and (self.jwt_public_key_file or self.jwt_jwks_url):
            raise PydanticCustomError(
                "development", "REHAB_DEVELOPMENT goes with REHAB_JWT_SECRET, or with no key at all"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name may resolve to anything (RFC 6761).
        return host == "localhost"


def load_settings(**stated: Any) -> ApiSettings:
    """The settings of the environment; those in `stated` take precedence.

    Raises SettingsError for an invalid value, for values that contradict each other, and for an unknown
    name with the prefix: a misspelt setting would silently have no effect.
    """
    known = {variable(name) for name in ApiSettings.model_fields}
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise SettingsError(f"{name} is not a setting.")
    try:
        return ApiSettings(**stated)
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def _sentence(error: ValidationError) -> str:
    # The first problem is enough. No value is quoted, because it may be a secret.
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if not detail["loc"]:
        return f"{detail['msg']}."
    name = variable(str(detail["loc"][0]))
    if detail["type"] == "missing":
        return f"{name} is needed: {_meaning(str(detail['loc'][0]))}"
    return f"{name}: {detail['msg']}."


def _meaning(field: str) -> str:
    return str(ApiSettings.model_fields[field].description)

"""Runs the API: `python -m ingest`. Its settings come from the environment."""

import argparse
import logging
import sys

import uvicorn
from google.auth.exceptions import GoogleAuthError
from pydantic import SecretStr

from ingest.app import create_app
from ingest.auth import development_token, new_secret
from ingest.settings import JOB_SETTINGS, ApiSettings, SettingsError, load_settings
from ingest.spool import SpoolError

# Supervisors usually wait 10 s before they kill. The rest is for writing unconfirmed events to disk.
_SHUTDOWN_SECONDS = 8

# Google's load balancers keep an idle connection for 600 s; a server that closes it first loses requests.
_KEEP_ALIVE_SECONDS = 620


def main() -> int:
    """Runs the API. Returns 2 if the settings are invalid, 1 if it cannot start for another reason."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings(**_stated())
        if settings.development:
            settings = _with_secret(settings)
        app = create_app(settings)
    except SettingsError as error:
        return _complain(str(error), 2)
    except SpoolError as error:
        return _complain(str(error), 1)
    except GoogleAuthError:
        return _complain("Google Cloud needs credentials: run `gcloud auth application-default login`.", 1)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        # No path, query or address may reach a log. Requests are counted instead.
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return 0


def _stated() -> dict[str, str]:
    """The options given on the command line: which job to report on."""
    parser = argparse.ArgumentParser(
        prog="python -m ingest",
        description="The HTTP API. Its settings come from the environment; these can also be given here.",
        allow_abbrev=False,
    )
    for name in JOB_SETTINGS:
        parser.add_argument(f"--{name}", help=ApiSettings.model_fields[name].description)
    return {name: value for name, value in vars(parser.parse_args()).items() if value is not None}


def _complain(sentence: str, status: int) -> int:
    print(f"ingest: {sentence}", file=sys.stderr)
    return status


def _with_secret(settings: ApiSettings) -> ApiSettings:
    if not settings.jwt_secret:
        settings = settings.model_copy(update={"jwt_secret": SecretStr(new_secret())})
    assert settings.jwt_secret  # noqa: S101 (for the types)
    print(f"token {development_token(settings.jwt_secret.get_secret_value())}", flush=True)
    return settings


if __name__ == "__main__":
    sys.exit(main())

"""The API as a process: `python -m ingest`; its settings come from the environment."""

import logging
import sys

import uvicorn
from pydantic import SecretStr

from ingest.app import create_app
from ingest.auth import development_token, new_secret
from ingest.settings import Settings, SettingsError, load_settings

# A supervisor's patience, less the time to write down what Pub/Sub has not confirmed.
_SHUTDOWN_SECONDS = 8


def main() -> int:
    """The command; 2 for settings that do not work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load_settings()
        if settings.development:
            settings = _with_secret(settings)
        app = create_app(settings)
    except SettingsError as error:
        print(f"ingest: {error}", file=sys.stderr)
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        # Paths, queries and addresses are in no log; requests are counted instead.
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return 0


def _with_secret(settings: Settings) -> Settings:
    if not settings.jwt_secret:
        settings = settings.model_copy(update={"jwt_secret": SecretStr(new_secret())})
    assert settings.jwt_secret  # noqa: S101 (for the types)
    print(f"token {development_token(settings.jwt_secret.get_secret_value())}", flush=True)
    return settings


if __name__ == "__main__":
    sys.exit(main())

"""The addresses and names of a local run's emulators and resources."""

import os
import secrets
import socket
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from pipeline.operations.provisioning import Resources

PROJECT = "rehab-local"

_CONNECT_SECONDS = 5.0


class PlaceError(Exception):
    """A named emulator does not answer; the message is one sentence for the user."""


class Places(NamedTuple):
    """The emulators' addresses and the names of everything in them.

    `pubsub` is host:port, `bigquery` a URL; `nudge_subscription` is a full path, as are those in `resources`.
    """

    pubsub: str
    bigquery: str
    resources: Resources
    nudge_subscription: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that point clients to the emulators."""
        return {"PUBSUB_EMULATOR_HOST": self.pubsub, "BIGQUERY_EMULATOR_HOST": self.bigquery}


def named_emulators(environment: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """The Pub/Sub emulator (host:port) and the BigQuery emulator (URL) that the environment names.

    None for one that it does not name. Raises PlaceError if a named one does not answer.
    """
    pubsub = environment.get("PUBSUB_EMULATOR_HOST") or None
    bigquery = environment.get("BIGQUERY_EMULATOR_HOST") or None
    if pubsub:
        _check("PUBSUB_EMULATOR_HOST", pubsub, f"//{pubsub}")
    if bigquery:
        bigquery = bigquery if "://" in bigquery else f"http://{bigquery}"
        _check("BIGQUERY_EMULATOR_HOST", bigquery, bigquery)
    return pubsub, bigquery


def _check(variable: str, value: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        with socket.create_connection(address, timeout=_CONNECT_SECONDS):
            pass
    except (OSError, ValueError):
        raise PlaceError(f"{variable} names {value}, where nothing answers.") from None


def make_places(pubsub: str, bigquery: str, *, fresh: bool) -> Places:
    """Places in these emulators; with `fresh`, their names are new."""
    token = secrets.token_hex(3)
    suffix, dataset = (f"-{token}", f"rehab_tracking_{token}") if fresh else ("", "rehab_tracking")
    topics, subscriptions = f"projects/{PROJECT}/topics", f"projects/{PROJECT}/subscriptions"
    resources = Resources(
        primary_topic=f"{topics}/rehab-events-primary{suffix}",
        secondary_topic=f"{topics}/rehab-events-secondary{suffix}",
        primary_subscription=f"{subscriptions}/rehab-primary{suffix}",
        secondary_subscription=f"{subscriptions}/rehab-secondary{suffix}",
        nudge_topic=f"{topics}/rehab-nudges{suffix}",
        dataset=f"{PROJECT}.{dataset}",
    )
    return Places(pubsub, bigquery, resources, f"{subscriptions}/rehab-nudges-viewer{suffix}")

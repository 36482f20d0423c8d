"""Example commands for a local run that stays up, to copy into another terminal."""

import shlex
import sys
from string import Template

from local.api import Api
from local.places import PROJECT, Places


class _Command(Template):
    # Dollar signs belong to the shell.
    delimiter = "@"


# On one line, so that it can be pasted anywhere.
_SEND = """\
curl -s @api/api/v1/events -H 'Authorization: Bearer @token' -H 'Content-Type: application/json' \
-d '{"event_id": "by-hand-'$(date +%s)'", "kind": "exercise_session", "subject_id": "by-hand", \
"body": {"completion_status": "completed", "duration_minutes": 20, "overall_quality": 0.45, \
"pain_level": 8}}'"""
_STATUS = """\
curl -s @api/api/v1/events/broadway/status -H 'Authorization: Bearer @token'"""
_QUERY = """\
curl -s @bigquery/bigquery/v2/projects/@project/queries \\
  -H 'Content-Type: application/json' \\
  -d '{"useLegacySql": false,
  "defaultDataset": {"projectId": "@project", "datasetId": "@dataset"},
  "query": "SELECT description, status FROM work_queue_current WHERE patient_id = \\"by-hand\\""}'"""
_EVENT = """\
EVENT='{"event_id": "published-'$(date +%s)'", "kind": "exercise_session", "subject_id": "by-hand",
  "body": {"completion_status": "completed", "duration_minutes": 20, "overall_quality": 0.45,
  "pain_level": 8}}'"""
_CURL = """\
curl -s http://@pubsub/v1/@topic:publish \\
  -H 'Content-Type: application/json' \\
  -d '{"messages": [{"data": "'$(printf %s "$EVENT" | base64 | tr -d '\\n')'"}]}'"""
_GCLOUD = """\
CLOUDSDK_AUTH_DISABLE_CREDENTIALS=true \\
  CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB=http://@pubsub/ \\
  gcloud pubsub topics publish @topic --message "$EVENT\""""
_PYTHON = """\
PUBSUB_EMULATOR_HOST=@pubsub @python -c 'import sys
from google.cloud.pubsub_v1 import PublisherClient
print(PublisherClient().publish(sys.argv[1], sys.argv[2].encode()).result())' @topic "$EVENT\""""


def commands(places: Places, api: Api, *, official: bool) -> dict[str, str]:
    """Shell commands, by what they do. The last ones publish the event that the command before them defines.

    Only the `official` Pub/Sub emulator accepts HTTP.
    """
    publish = {"with curl": _CURL, "or with gcloud": _GCLOUD} if official else {"with Python": _PYTHON}
    texts = {
        "Send an event to the API: a session with severe pain": _SEND,
        "See it counted, and how the pipeline is": _STATUS,
        "See what became of it": _QUERY,
        "Or publish to Pub/Sub yourself: the event": _EVENT,
        **publish,
    }
    values = {
        "api": api.url,
        "token": api.token,
        "pubsub": places.pubsub,
        "topic": places.resources.primary_topic,
        "python": shlex.quote(sys.executable),
        "bigquery": places.bigquery,
        "project": PROJECT,
        "dataset": places.resources.dataset.rpartition(".")[2],
    }
    return {title: _Command(text).substitute(values) for title, text in texts.items()}

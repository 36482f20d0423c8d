"""How to use a local run that stays up: commands to copy into another terminal."""

import json
import shlex

from pipeline.local.places import PROJECT, Places

PATIENT = "by-hand"

_EVENT = (
    f'{{"event_id":"by-hand-\'$(date +%s)\'","kind":"exercise_session","subject_id":"{PATIENT}",'
    '"body":{"completion_status":"completed","duration_minutes":20,"overall_quality":0.45,"pain_level":8}}'
)
_QUERY = """\
SELECT priority, item_type, description, status FROM `{dataset}.work_queue_current` \
WHERE patient_id = "{patient}" ORDER BY priority"""


def commands(places: Places) -> dict[str, str]:
    """Shell commands by what they do; the first one sets the event that the others publish."""
    topic = places.resources.primary_topic
    query = _QUERY.format(dataset=places.resources.dataset, patient=PATIENT)
    body = json.dumps({"useLegacySql": False, "query": query})
    return {
        "An event: a session with severe pain": f"EVENT='{_EVENT}'",
        "Publish it with curl": (
            "curl -s -H 'Content-Type: application/json' "
            f"http://{places.pubsub}/v1/{topic}:publish \\\n"
            '  -d \'{"messages":[{"data":"\'$(printf %s "$EVENT" | base64 | tr -d \'\\n\')\'"}]}\''
        ),
        "or with gcloud": (
            f"CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB=http://{places.pubsub}/ "
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS=true \\\n"
            f"  gcloud pubsub topics publish {topic.rpartition('/')[2]} --project {PROJECT} "
            '--message "$EVENT"'
        ),
        "See what became of it": (
            f"curl -s -H 'Content-Type: application/json' "
            f"{places.bigquery}/bigquery/v2/projects/{PROJECT}/queries \\\n"
            f"  -d {shlex.quote(body)}"
        ),
    }

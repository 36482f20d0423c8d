"""What leaves for the nudge topic."""

from google.pubsub_v1.types import PubsubMessage

from pipeline.sinks.nudges import nudge_messages
from transforms.policy.nudges import Nudge
from transforms.steps.chunks import NudgeChunk


def test_a_nudge_is_encoded_as_pubsub_takes_it() -> None:
    nudge = Nudge({"nudge_id": "n1", "kind": "alert"}, '{"type":"é"}'.encode())
    (message,) = nudge_messages(NudgeChunk((nudge,)))
    decoded = PubsubMessage.deserialize(message._to_proto_str(for_publish=True))
    assert (dict(decoded.attributes), decoded.data) == (nudge.attributes, nudge.body)
    assert decoded == PubsubMessage(data=nudge.body, attributes=nudge.attributes)

"""The Pub/Sub servers that there are on this machine, by name: the project's own, and perhaps Google's."""

from local.emulators import available_pubsub, pubsub_emulator, pubsub_server

HAS_OFFICIAL = available_pubsub()[1] is None
SERVERS = {"own": pubsub_server} | ({"official": pubsub_emulator} if HAS_OFFICIAL else {})
LOGS = {"own": "pubsub-server.log", "official": "pubsub-emulator.log"}

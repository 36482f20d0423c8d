"""Patterns of Google Cloud resource names, to refuse a misspelt name before anything runs."""

import re

_PROJECT = r"[a-z][-a-z0-9:.]{4,61}[a-z0-9]"
_NAME = r"[A-Za-z][-\w.~+%]{2,254}"

TOPIC = re.compile(rf"projects/{_PROJECT}/topics/{_NAME}", re.ASCII)
SUBSCRIPTION = re.compile(rf"projects/{_PROJECT}/subscriptions/{_NAME}", re.ASCII)
DATASET = re.compile(rf"{_PROJECT}\.\w{{1,1024}}", re.ASCII)

"""Sends the load: `python -m benchmarks.drive SCENARIO URL [SECONDS]`, with the API's token in TOKEN."""

import os
import sys
import time
from typing import Any

from benchmarks.open_load import Load
from benchmarks.phases import SCENARIOS

_PATIENCE_SECONDS = 120.0
_LATENCY = "rehab_tracking.broadway.event_to_write_ms"
_OUTCOMES = ("processed", "withheld", "too_late", "dead_letter")
_DUPLICATES = ("duplicate",)


def drive(scenario: str, url: str, token: str, seconds: float | None = None) -> int:
    """Sends the load and prints the results. Returns 1 if an event is missing in the end."""
    before = status(url, token)
    load = Load(url, token)
    accepted = 0
    print(f"{'events/s':16}{'accepted/s':>12}{'requests':>10}{'errors':>8}{'p50':>10}{'p95':>10}{'p99':>10}")
    for planned in SCENARIOS[scenario]:
        phase = planned._replace(seconds=seconds or planned.seconds)
        figures = load.run(phase)
        accepted += figures.accepted
        print(
            f"{phase.name:16}{figures.accepted / figures.seconds:12,.0f}{figures.requests:10,}"
            f"{figures.errors:8,}{figures.p50:7,.0f} ms{figures.p95:7,.0f} ms{figures.p99:7,.0f} ms",
            flush=True,
        )
        if scenario == "capacity" and not figures.holds(phase):
            break
    return report(before, accepted, url, token)


def report(before: dict[str, Any], accepted: int, url: str, token: str) -> int:
    """Waits until the pipeline has written what was accepted, then prints its figures."""
    began = moved = time.monotonic()
    seen = events(now := status(url, token)) - events(before)
    while (seen < accepted or written(now) < projected(now)) and time.monotonic() - moved < _PATIENCE_SECONDS:
        time.sleep(0.5)
        now = status(url, token)
        if (more := events(now) - events(before)) != seen:
            seen, moved = more, time.monotonic()
    rows = written(now) - written(before)
    latency = now["metrics"]["distributions"][_LATENCY]["mean"]
    print(f"accepted by the API        {accepted:10,} events")
    print(f"came out of the pipeline   {seen:10,} events")
    # Each event that is sent has its own id, so a duplicate is a redelivery.
    again = events(now, _DUPLICATES) - events(before, _DUPLICATES)
    print(f"delivered again, dropped   {again:10,} events")
    print(f"written to BigQuery        {rows:10,} rows, published to written {latency:,.0f} ms on average")
    print(f"all of it written          {time.monotonic() - began:10.1f} s after the last request")
    print(f"the pipeline is {now['status']}", *now["reasons"])
    return 0 if seen == accepted else 1


def status(url: str, token: str) -> dict[str, Any]:
    """The pipeline's status from the API. Exits with one sentence if there is none."""
    # Imported after locust, which patches modules that it uses.
    import requests

    try:
        answer = requests.get(
            f"{url}/api/v1/events/broadway/status", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        content: dict[str, Any] = answer.json()
    except requests.RequestException as error:
        sys.exit(f"benchmarks.load: {url} does not return the status ({type(error).__name__}).")
    if "metrics" not in content:
        sys.exit(f"benchmarks.load: {url} does not return the status: {content.get('message')}")
    return content


def events(answer: dict[str, Any], outcomes: tuple[str, ...] = _OUTCOMES) -> int:
    """Number of events with one of these outcomes."""
    prefixes = tuple(f"rehab_tracking.broadway.event.{outcome}" for outcome in outcomes)
    counters = answer["metrics"]["counters"].items()
    return sum(count["total"] for name, count in counters if name.startswith(prefixes))


def projected(answer: dict[str, Any]) -> int:
    counters = answer["metrics"]["counters"].items()
    return sum(count["total"] for name, count in counters if ".row.projected." in name)


def written(answer: dict[str, Any]) -> int:
    """Rows that BigQuery has acknowledged; the latency of each is recorded at that moment."""
    return int(answer["metrics"]["distributions"][_LATENCY]["count"])


if __name__ == "__main__":
    scenario, url, *seconds = sys.argv[1:]
    sys.exit(drive(scenario, url, os.environ["TOKEN"], *map(float, seconds)))

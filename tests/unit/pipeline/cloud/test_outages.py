"""What does not answer, and since when."""

import time

from pipeline.cloud.outages import Call, Outages

WRITE = Call("BigQuery", "table rehab-local.rehab.quality", "write to")
LOOK = Call("BigQuery", "table rehab-local.rehab.quality", "look up")


def test_an_outage_lasts_from_the_first_failure_until_an_answer() -> None:
    outages = Outages()
    before_us = int(time.time() * 1_000_000)
    outages.failed(WRITE, TimeoutError("with a secret"))
    first = outages.current()[WRITE]
    assert before_us <= first.since_us <= int(time.time() * 1_000_000)
    outages.failed(WRITE, ConnectionError("with another"))
    # Another call of the same thing may well be answered.
    outages.failed(LOOK, ConnectionError())
    outages.answered(LOOK)
    assert outages.current() == {WRITE: (first.since_us, "ConnectionError")}
    outages.answered(WRITE)
    outages.answered(WRITE)
    assert outages.current() == {}

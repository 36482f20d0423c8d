"""The proof at a size that fits into CI; `python -m tests.chaos.proof --events=50000` is the large one."""

from pathlib import Path

import pytest

from tests.chaos import bigquery, pubsub
from tests.chaos.proof import prove


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The return_immediately flag")
def test_nothing_is_lost_counted_twice_or_told(tmp_path: Path) -> None:
    figures = prove(events=6000, kills=5, seed=1, share=0.1, folder=tmp_path)

    report = "\n".join(figures.lines())
    print(report)
    assert figures.holds, report
    assert (figures.events, figures.kills) == (6000, 5)
    # It proves something only if there was something to lose, and something went wrong.
    assert min(figures.rows, figures.letters, figures.nudges, figures.log_lines) > 0
    happened = {f"BigQuery: {fault}" for fault in bigquery.INSERT}
    happened |= {f"Pub/Sub: {fault}" for fault in (*pubsub.FAULTS["Pull"], pubsub.DEATH)}
    assert figures.faults.keys() >= happened | {"Pub/Sub: acknowledgement_dropped"}

"""When a run counts as silent: a pure judgement of its row at a moment."""

from dataclasses import replace

import pytest

from mechanicd.runs import RunRow, RunStatus, Silence, alerts, judged, not_ahead
from mechanicd.tuner import TunerConfig

S = 10**9
ROW = RunRow(
    id=1,
    project="p",
    run="r",
    labels={},
    config=TunerConfig(),
    status=RunStatus.RUNNING,
    status_message="",
    epoch=1,
    session=1,
    last_step=10,
    state=b"",
    scale=(1.0,),
    create_time=1000 * S,
    open_time=2000 * S,
    step_time=3000 * S,
    interval=S,
    session_count=1,
    rewinds=0,
)
SILENCE = Silence(factor=20.0, seconds=10.0)


@pytest.mark.parametrize(
    ("changes", "quiet", "silent"),
    [
        ({}, 20.0, False),
        ({}, 20.1, True),
        ({"interval": S // 1000}, 10.0, False),
        ({"interval": S // 1000}, 10.1, True),
        ({"interval": 600 * S}, 11_000.0, False),
        ({"interval": 600 * S}, 12_001.0, True),
        ({"interval": 0}, 10.1, True),
        ({"open_time": 3015 * S}, 20.1, False),
        ({"open_time": 3015 * S}, 35.1, True),
        ({"step_time": 0, "interval": 0, "open_time": 3000 * S}, 10.1, True),
        ({"step_time": 3100 * S}, 50.0, False),
    ],
)
def test_a_run_is_silent_after_many_of_its_intervals_and_a_least_time(
    changes: dict[str, int], quiet: float, silent: bool
) -> None:
    row = replace(ROW, **changes)
    now = judged(row, 3000 * S + int(quiet * S), SILENCE)
    assert (now.status == RunStatus.SILENT) == silent
    assert now == (replace(row, status=RunStatus.SILENT, status_message=now.status_message) if silent else row)


def test_the_message_says_how_long_and_what_was_usual() -> None:
    assert judged(ROW, 3090 * S, SILENCE).status_message == "no step for 1.5 min; usually one every 1 s"
    fast = replace(ROW, interval=12_500_000)
    assert judged(fast, 3000 * S + 7200 * S, SILENCE).status_message == "no step for 2 h; usually one every 12.5 ms"
    new = replace(ROW, interval=0)
    assert judged(new, 3011 * S, SILENCE).status_message == "no step for 11 s; no usual interval known yet"


@pytest.mark.parametrize("status", [RunStatus.FAILED, RunStatus.FINISHED, RunStatus.PREEMPTED])
def test_what_has_ended_is_not_silent(status: str) -> None:
    row = replace(ROW, status=status)
    assert judged(row, 10**20, SILENCE) == row


@pytest.mark.parametrize("ahead", [S, 3600 * S, 2**62])
@pytest.mark.parametrize("field", ["step_time", "open_time", "create_time"])
def test_a_time_from_the_future_counts_as_the_moment_at_which_it_was_read(field: str, ahead: int) -> None:
    """Another clock wrote it, or this one was set back. The run is alive, and silent once it has been quiet for long."""
    read = 5000 * S
    row = not_ahead(replace(ROW, **{field: read + ahead}), read)
    assert getattr(row, field) == read
    assert judged(row, read, SILENCE).status == RunStatus.RUNNING
    assert judged(row, read + 21 * S, SILENCE).status == RunStatus.SILENT
    assert not_ahead(row, read + S) is row


def test_a_connection_that_was_lost_in_the_future_is_noticed() -> None:
    read = 5000 * S
    row = replace(ROW, step_time=read, stats=replace(ROW.stats, away=read + 3600 * S))
    assert [alert.kind for alert in alerts(row, read + 15 * S, SILENCE)] == []
    seen = not_ahead(row, read)
    assert [alert.kind for alert in alerts(seen, read + 15 * S, SILENCE)] == ["outage"]

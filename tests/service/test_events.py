"""What is noted when sessions come and go: pure decisions, in words."""

from dataclasses import replace
from typing import Any

import pytest

from mechanicd.runs import EventKind, EventRow, RunRow, RunStatus
from mechanicd.service import _events, _session_start
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
    session=7,
    last_step=10,
    state=b"",
    scale=(1.0,),
    create_time=1000 * S,
    open_time=2000 * S,
    step_time=3000 * S,
    interval=S,
    session_count=3,
    rewinds=0,
)
REWINDS = _session_start.Decision(_session_start.REWOUND, 4, None, "the run rewinds")


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, [EventKind.FENCED, EventKind.REWOUND]),
        ({"session": 0}, [EventKind.REWOUND]),
        ({"session": 0, "status": RunStatus.FINISHED}, [EventKind.REWOUND]),
    ],
)
def test_a_new_session_says_whether_it_took_the_run_from_another(changes: dict[str, Any], kinds: list[str]) -> None:
    events = _events.opened(replace(ROW, **changes), REWINDS, 5 * S, "")
    assert [event.kind for event in events] == kinds
    assert events[-1] == EventRow(5 * S, 4, EventKind.REWOUND, "the run rewinds")
    assert all((event.step, "session 3 had not closed" in event.message) == (10, True) for event in events[:-1])


@pytest.mark.parametrize(
    ("interval", "quiet", "outage"),
    [(1.0, 4.0, False), (1.0, 4.1, True), (0.01, 2.0, False), (0.01, 2.1, True), (60.0, 200.0, False), (0.0, 2.1, True)],
)
def test_a_stretch_without_steps_is_an_outage_if_longer_than_usual(interval: float, quiet: float, outage: bool) -> None:
    row = replace(ROW, interval=int(interval * S))
    events = _events.reattached(row, row.step_time + int(quiet * S), in_memory=True)
    assert [event.kind for event in events] == [EventKind.OUTAGE, EventKind.REATTACHED][0 if outage else 1 :]
    assert {event.step for event in events} == {10}
    if outage:
        assert f"no step reached the server for the {quiet:.3g} s before" in events[0].message
        assert ("the usual interval" in events[0].message) == bool(interval)


def test_a_session_that_comes_back_says_whether_this_server_knew_it() -> None:
    texts = [_events.reattached(ROW, ROW.step_time, in_memory=known)[0].message for known in (True, False)]
    assert "after a lost connection; the server has step 10" in texts[0]
    assert "it restarted, or another replica took over; the server has step 10" in texts[1]


def test_what_a_trainer_says_when_it_closes_is_kept_as_far_as_a_database_can() -> None:
    assert _events.closed(3, S, "failed", "out of \0 memory") == EventRow(
        S, 3, "closed", "closed as failed: out of \ufffd memory"
    )
    assert _events.closed(3, S, "finished", "").message == "closed as finished"
    assert len(_events.closed(3, S, "failed", "x" * 5000).message) < 1100

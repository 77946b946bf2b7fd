"""What trainings report, and what the demo makes of it."""

import math

import pytest

from mechanicd.demo import _fleet, _reports
from mechanicd.demo._progress import Progress
from mechanicd.demo._reports import Finished, Started, Stepped

RECIPE = _fleet.Recipe("cnn", "adamw", 64, 1500)


@pytest.mark.parametrize(
    "report",
    [
        Started(700),
        Stepped(710, 0.1 + 0.2, 4.9e-324, 97.5),
        Finished(None, 97.5, 0.1, 0.0046, 12.5),
        Finished(3e-4, 91.0, 0.4, 3e-4, 6.0),
    ],
)
def test_a_report_survives_its_line_bit_for_bit(report: _reports.Report):
    line = _reports.encode(report)
    assert "\n" not in line
    assert _reports.decode(line) == report


def test_a_divergence_is_reported_in_json_that_every_parser_takes():
    line = _reports.encode(Finished(0.3, 10.0, math.inf, 0.3, 1.0))
    assert "Infinity" not in line
    assert "NaN" not in line
    again = _reports.decode(line)
    assert isinstance(again, Finished)
    assert math.isnan(again.loss)
    assert again.lr == 0.3


@pytest.mark.parametrize("line", ["", "[]", "null", "Downloading…", '{"report": "gossip"}', '{"report": "started", "at": 1}'])
def test_what_is_no_report_is_refused(line: str):
    with pytest.raises(ValueError, match="expected a report"):
        _reports.decode(line)


def test_a_run_from_its_start_to_its_end():
    run = Progress(RECIPE)
    assert run.state == "starting"
    run.hear(Started(0))
    run.hear(Stepped(10, 2.3, 0.005, math.nan))
    assert (run.state, run.step, run.scale) == ("training", 10, 0.005)
    assert math.isnan(run.accuracy)
    run.hear(Stepped(20, 1.9, 0.003, 88.0))
    run.hear(Stepped(30, 1.8, 0.004, math.nan))
    assert run.accuracy == 88.0
    run.hear(Finished(None, 97.5, 0.1, 0.002, 9.0))
    assert (run.state, run.step, run.accuracy, run.scale, run.peak) == ("done", 1500, 97.5, 0.002, 0.005)


def test_a_killed_run_goes_back_to_its_checkpoint_and_its_repeated_reports_are_compared():
    run = Progress(RECIPE)
    run.hear(Started(0))
    for step in range(10, 671, 10):
        run.hear(Stepped(step, 1.0 / step, 0.001 * step, math.nan))
    run.killed()
    assert (run.state, run.killed_at) == ("killed", 670)
    run.hear(Started(600))
    assert (run.state, run.step, run.resumed_from) == ("resumed", 600, 600)
    for step in range(610, 701, 10):
        loss = 1.0 / step if step != 650 else math.nextafter(1.0 / step, 1.0)
        run.hear(Stepped(step, loss, 0.001 * step, math.nan))
    assert (run.repeated, run.differing) == (7, 1)
    run.hear(Finished(None, 97.5, 0.1, 0.002, 9.0))
    assert run.state == "done"


def test_the_sweep_does_not_touch_the_run():
    run = Progress(RECIPE)
    run.hear(Started(0))
    run.hear(Finished(0.001, 95.0, 0.2, 0.001, 5.0))
    assert run.state == "training"
    assert [one.lr for one in run.sweep] == [0.001]

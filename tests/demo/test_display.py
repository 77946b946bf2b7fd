"""The table says what came of the runs, and the board what they do."""

import io
import json
import math

import pytest
from rich.console import Console

from mechanicd.demo import _display, _fleet
from mechanicd.demo._outcome import Outcome
from mechanicd.demo._progress import Progress
from mechanicd.demo._reports import Finished, Started, Stepped


def _run(
    accuracy: float = 97.5, sweep: tuple[tuple[float, float], ...] = ((0.001, 97.2), (0.01, 98.1), (0.03, 10.0))
) -> Progress:
    run = Progress(_fleet.Recipe("cnn", "adamw", 64, 1500))
    run.hear(Started(0))
    run.hear(Stepped(10, 2.3, 0.0052, 50.0))
    run.hear(Finished(None, accuracy, 0.1, 0.0031, 9.0))
    for lr, of_lr in sweep:
        run.hear(Finished(lr, of_lr, math.nan if of_lr == 10.0 else 0.1, lr, 5.0))
    return run


def _text(outcomes: list[Outcome], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(_display.summary(outcomes, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_shows_the_run_beside_the_best_and_worst_of_its_sweep(width: int):
    text = _text([Outcome(_run())], width)
    (row,) = (line.split() for line in text.splitlines() if line.startswith("mnist/"))
    peak = ["0.0052"] if width == 100 else []
    assert row == ["mnist/cnn-adamw-b64", *peak, "0.0031", "97.5", "98.1", "@", "0.01", "10.0", "@", "0.03", "-0.6", "yes"]
    assert "1 of 1 runs come within 1.5 points" in " ".join(text.split())
    assert "3 training runs, MECHANIC 1" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100])
def test_the_real_fleet_fits_the_width(width: int):
    outcomes = []
    for recipe in _fleet.full().recipes:
        run = Progress(recipe)
        run.hear(Stepped(10, 2.3, 0.00052, 50.0))
        run.hear(Finished(None, 97.5, 0.1, 0.00011, 9.0))
        for lr in _fleet.LEARNING_RATES[recipe.base]:
            run.hear(Finished(lr, 88.8, 0.1, lr, 5.0))
        outcomes.append(Outcome(run))
    assert "…" not in _text(outcomes, width)


@pytest.mark.parametrize(("accuracy", "within"), [(96.6, True), (96.5, False), (99.0, True)])
def test_within_is_1_5_points_or_better(accuracy: float, within: bool):
    outcome = Outcome(_run(accuracy))
    assert outcome.within is within
    assert outcome.points_from_best == pytest.approx(accuracy - 98.1)
    assert ("yes" if within else "no") in _text([outcome]).split()


def test_without_a_sweep_there_is_nothing_to_compare_with():
    outcome = Outcome(_run(sweep=()))
    assert (outcome.best, outcome.worst, outcome.points_from_best, outcome.within) == (None, None, None, None)
    text = _text([outcome])
    assert "97.5" in text
    assert "sweep" not in text


def test_the_json_holds_the_same_numbers_and_no_nan():
    run = _run()
    document = json.loads(json.dumps(Outcome(run).to_json(), allow_nan=False))
    assert document["run"] == "mnist/cnn-adamw-b64"
    assert (document["accuracy"], document["scale"], document["scale_peak"]) == (97.5, 0.0031, 0.0052)
    assert [one["lr"] for one in document["sweep"]] == [0.001, 0.01, 0.03]
    assert document["best"]["lr"] == 0.01
    assert document["worst"] == {"lr": 0.03, "accuracy": 10.0, "loss": None, "seconds": 5.0}
    assert document["points_from_best"] == -0.6
    assert document["kill"] is None


@pytest.mark.parametrize(
    ("repeated", "differing", "words"),
    [
        (0, 0, "step 600."),
        (7, 0, "it repeated the 7 reports in between, equal to the last bit"),
        (7, 2, "it repeated the 7 reports in between, but 2 of them differ"),
    ],
)
def test_the_kill_is_described(repeated: int, differing: int, words: str):
    run = _run()
    run.killed_at, run.resumed_from, run.repeated, run.differing = 670, 600, repeated, differing
    text = " ".join(_text([Outcome(run)]).split())
    assert "was killed at step 670 and resumed from its checkpoint of step 600" in text
    assert words in text


def test_without_a_terminal_the_board_prints_a_line_now_and_then_and_no_escapes():
    file = io.StringIO()
    run = Progress(_fleet.Recipe("mlp", "sgd", 128, 200))
    board = _display.Board(Console(file=file, width=200), [run], lambda _: 0)
    with board:
        board.refresh()
        run.hear(Started(0))
        for step in range(1, 201):
            run.hear(Stepped(step, 2.3, 0.01, 50.0))
            board.refresh()
        run.hear(Finished(None, 91.2, 0.1, 0.01, 1.0))
        board.refresh()
        board.refresh()
    text = file.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    assert 4 <= len(lines) <= 6
    assert "done" in lines[-1]
    assert "91.2 %" in lines[-1]


def test_on_a_terminal_there_is_a_bar_for_each_run():
    file = io.StringIO()
    runs = [_run(), Progress(_fleet.Recipe("mlp", "lion", 32, 200))]
    with _display.Board(Console(file=file, width=100, force_terminal=True), runs, lambda _: 5) as board:
        board.refresh()
    text = file.getvalue()
    assert "mnist/cnn-adamw-b64" in text
    assert "mnist/mlp-lion-b32" in text
    assert "1500/1500" in text
    assert "3/5" in text
    assert "━" in text

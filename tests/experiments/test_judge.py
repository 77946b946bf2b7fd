"""Win, tie or loss, by the rule that the report states."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from experiments import _judge, _results
from experiments._catalogue import MECHANIC, Row, Task, Training, start_of_sweep, sweep

ROW = Row(Task("logistic/wine", "tabular-wine", "linear", batch=32, steps=60, clip=0.0), "adamw")
SEEDS = (0, 1, 2)

Make = Callable[..., dict[str, Any]]


def swept(
    record: Make, val: dict[float, Any], test: dict[float, Any] | None = None, **fields: Any
) -> dict[str, dict[str, Any]]:
    """Records of a sweep with these values at these rates; every seed has the same ones."""
    records = {}
    for rate in start_of_sweep(ROW):
        for seed in SEEDS:
            training = Training(ROW, sweep(rate), seed)
            made = record(training, val.get(rate, 50.0), (test or {}).get(rate, 50.0), scale=rate, **fields)
            records[training.key] = made
    return records


def test_the_rate_is_selected_on_val_and_reported_on_test(record: Make) -> None:
    records = swept(record, val={0.01: 80.0, 0.03: 90.0, 0.1: 85.0}, test={0.01: 95.0, 0.03: 70.0, 0.1: 99.0})
    best = _judge.best_of_sweep(ROW, SEEDS, records)
    assert best is not None
    assert (best.arm, best.mean, best.scale) == (sweep(0.03), 70.0, pytest.approx(0.03))


def test_the_loss_breaks_a_tie_in_accuracy(record: Make) -> None:
    records = swept(record, val={0.01: 90.0, 0.03: 90.0, 0.1: 90.0})
    for seed in SEEDS:
        records[Training(ROW, sweep(0.01), seed).key]["val"]["loss"] = 0.1
    assert _judge.selected(ROW, start_of_sweep(ROW), SEEDS, records) == 0.01


def test_a_diverged_rate_is_never_selected(record: Make) -> None:
    records = swept(record, val={0.1: 99.0, 0.03: 80.0})
    records[Training(ROW, sweep(0.1), 1).key]["diverged"] = True
    assert _judge.selected(ROW, start_of_sweep(ROW), SEEDS, records) == 0.03


def test_a_sweep_widens_only_once_it_is_complete(record: Make) -> None:
    first = start_of_sweep(ROW)
    records = swept(record, val={first[0]: 90.0})
    assert len(_judge.rates(ROW, SEEDS, records)) == len(first) + 1
    del records[Training(ROW, sweep(first[2]), 1).key]
    assert _judge.rates(ROW, SEEDS, records) == first


def test_a_record_with_another_spec_is_ignored(record: Make) -> None:
    records = swept(record, val={0.03: 90.0})
    for made in records.values():
        made["spec"] = {**made["spec"], "steps": 61}
    assert _judge.best_of_sweep(ROW, SEEDS, records) is None


def arm(record: Make, test: tuple[float, ...], right: list[int] | None = None) -> _judge.Outcome:
    """MECHANIC with these test accuracies, one per seed. The first `right` of 100 examples are classified correctly."""
    records = {}
    for seed, value in enumerate(test):
        training = Training(ROW, MECHANIC, seed)
        records[training.key] = record(training, 0.0, value)
        if right is not None:
            flags = [i < right[seed] for i in range(100)]
            records[training.key]["right"] = _results.encode(flags)  # type: ignore[arg-type]
    found = _judge.outcome(ROW, MECHANIC, range(len(test)), records)
    assert found is not None
    return found


def test_a_clear_difference_is_a_win_one_way_and_a_loss_the_other(record: Make) -> None:
    good, bad = arm(record, (90.0, 91.0, 90.0)), arm(record, (60.0, 61.0, 60.0))
    assert (_judge.verdict(good, bad), _judge.verdict(bad, good), _judge.verdict(good, good)) == ("win", "loss", "tie")


def test_a_difference_within_the_spread_over_seeds_is_a_tie(record: Make) -> None:
    calm, other = arm(record, (90.0, 90.0, 90.0), [90] * 3), arm(record, (80.0, 90.0, 100.0 - 16.0), [90] * 3)
    assert _judge.difference(calm, other) == pytest.approx(90.0 - (80.0 + 90.0 + 84.0) / 3)
    assert _judge.verdict(calm, other) == "tie"
    spread = math.sqrt(((80.0 - 84.6667) ** 2 + (90.0 - 84.6667) ** 2 + (84.0 - 84.6667) ** 2) / 2)
    assert _judge.noise(calm, other) == pytest.approx(2.776 * spread / math.sqrt(3), rel=1e-4)


def test_a_difference_of_a_few_test_examples_is_a_tie(record: Make) -> None:
    one, other = arm(record, (91.0,) * 3), arm(record, (90.0,) * 3)
    assert _judge.difference(one, other) == pytest.approx(1.0)
    assert _judge.verdict(one, other) == "tie", "one of a hundred examples"
    share = 0.01  # of the examples are right for the one and wrong for the other
    assert _judge.noise(one, other) == pytest.approx(1.96 * 100.0 * math.sqrt(share * (1.0 - share) / 100.0))


def test_a_single_seed_decides_nothing(record: Make) -> None:
    assert _judge.verdict(arm(record, (90.0,)), arm(record, (60.0,))) == "unclear"


def test_a_diverged_training_loses(record: Make) -> None:
    fine = arm(record, (90.0, 91.0, 90.0))
    records = {Training(ROW, MECHANIC, seed).key: record(Training(ROW, MECHANIC, seed), diverged=seed == 1) for seed in SEEDS}
    diverged = _judge.outcome(ROW, MECHANIC, SEEDS, records)
    assert diverged is not None
    assert (_judge.verdict(fine, diverged), _judge.verdict(diverged, fine)) == ("win", "loss")
    assert _judge.verdict(diverged, diverged) == "tie"

"""The catalogue is well formed: everything it names exists, and the server accepts the name of each training."""

import json
from collections import Counter

import pytest

from experiments import _arms, _catalogue, _models
from experiments._catalogue import FULL, QUICK
from experiments._sources import SETS
from mechanicd.v1 import names

EVERY = [training for experiment in (*FULL, *QUICK) for training in experiment.trainings()]


def test_everything_it_names_exists() -> None:
    for training in EVERY:
        task = training.row.task
        assert task.data in SETS
        assert task.model.partition("-")[0] in {*_models._BUILDERS, "minilm"}
        assert training.row.base in _arms.BASES
        assert training.arm.method in _arms._METHODS


def test_the_server_accepts_the_name_of_every_training() -> None:
    for training in EVERY:
        names.run_name("experiments", training.key)
        names.check_labels(training.labels)


def test_each_key_has_one_spec() -> None:
    for experiments in (FULL, QUICK):
        specs: dict[str, str] = {}
        for experiment in experiments:
            for training in experiment.trainings():
                assert specs.setdefault(training.key, json.dumps(training.spec)) == json.dumps(training.spec)


def test_a_spec_survives_json() -> None:
    for training in EVERY:
        assert json.loads(json.dumps(training.spec)) == training.spec


def test_the_issue_is_covered() -> None:
    rows = {row.name for experiment in FULL for row in experiment.rows}
    assert len({name.split("/")[1] for name in rows if name.startswith("logistic/")}) >= 12
    arms = Counter(training.arm.name for experiment in FULL for training in experiment.trainings())
    for name in ("dadaptation", "prodigy", "schedulefree", "mechanic-pytorch", "mechanic--scale_groups-tensor"):
        assert arms[name] >= 3 * 10
    for experiment in FULL:
        assert experiment.seeds == (0, 1, 2)
        for row in experiment.rows:
            assert not experiment.sweep or len(_catalogue.start_of_sweep(row)) >= 5


def test_quick_has_a_part_of_every_experiment() -> None:
    assert [experiment.name for experiment in QUICK] == [experiment.name for experiment in FULL]
    assert all(list(experiment.trainings()) for experiment in QUICK)


@pytest.mark.parametrize(("best", "following"), [(1e-3, 3e-4), (1e-1, 3e-1), (1e-2, None), (3e-2, None)])
def test_a_sweep_widens_if_its_best_rate_is_at_an_edge(best: float, following: float | None) -> None:
    assert _catalogue.widened((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), best) == following


def test_the_schedule_rises_and_falls() -> None:
    values = [_catalogue.schedule(step, 200) for step in range(200)]
    assert values.index(max(values)) == 9
    assert max(values) == 1.0
    assert values[:10] == sorted(values[:10])
    assert values[9:] == sorted(values[9:], reverse=True)
    assert values[-1] > 0.0


def test_choosing_an_unknown_experiment_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown experiment logistics; choose from all, ablations, .*, logistic"):
        _catalogue.choose(["logistics"], FULL)


def test_peers_are_trained_only_with_bases_they_support() -> None:
    lion = [training.arm.method for training in EVERY if training.row.base == "lion"]
    assert "prodigy" not in lion
    assert "dadaptation" in lion

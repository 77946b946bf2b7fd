"""The fleet is what the demo promises."""

import itertools
import math

import pytest

from mechanicd.demo import _fleet
from mechanicd.v1 import names


def test_every_base_trains_both_models_and_three_batch_sizes_occur():
    recipes = _fleet.full().recipes
    assert {(recipe.base, recipe.model) for recipe in recipes} == set(
        itertools.product(("adamw", "sgd", "lion"), ("cnn", "mlp"))
    )
    assert {recipe.batch for recipe in recipes} == {32, 64, 128}
    assert 6 <= len(recipes) <= 8


def test_one_base_and_model_has_all_batch_sizes_and_nothing_else_differs():
    of_one = [recipe for recipe in _fleet.full().recipes if (recipe.model, recipe.base) == ("mlp", "adamw")]
    assert [recipe.batch for recipe in of_one] == [32, 64, 128]
    assert len({(recipe.steps, recipe.seed) for recipe in of_one}) == 1


@pytest.mark.parametrize("fleet", [_fleet.full(), _fleet.quick()], ids=["full", "quick"])
def test_runs_have_names_and_labels_that_the_server_takes(fleet: _fleet.Fleet):
    for recipe in fleet.recipes:
        assert names.run_name(_fleet.PROJECT, recipe.run)
        assert names.check_labels(recipe.labels) == recipe.labels
    assert len({recipe.run for recipe in fleet.recipes}) == len(fleet.recipes)


def test_the_name_and_the_labels_tell_the_recipe():
    recipe = _fleet.Recipe("cnn", "adamw", 64, steps=1500, seed=3)
    assert recipe.run == "mnist/cnn-adamw-b64"
    assert recipe.labels == {"model": "cnn", "base": "adamw", "batch": "64", "seed": "3"}


@pytest.mark.parametrize("base", ["adamw", "sgd", "lion"])
def test_a_sweep_has_five_values_half_a_decade_apart(base: str):
    rates = _fleet.LEARNING_RATES[base]
    assert len(rates) == 5
    for smaller, larger in itertools.pairwise(rates):
        assert math.log10(larger / smaller) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("fleet", [_fleet.full(), _fleet.quick()], ids=["full", "quick"])
def test_the_kill_comes_between_two_checkpoints_in_the_midst_of_the_training(fleet: _fleet.Fleet):
    assert fleet.victim in fleet.recipes
    assert 0.3 < fleet.kill_at / fleet.victim.steps < 0.7
    assert fleet.kill_at % fleet.checkpoint_every != 0
    assert fleet.kill_at > fleet.checkpoint_every


def test_the_schedule_rises_to_one_and_falls_towards_zero():
    values = [_fleet.schedule(step, 100) for step in range(100)]
    peak = values.index(max(values))
    assert max(values) == 1.0
    assert peak == 4
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert 0.0 < values[-1] < 0.02
    assert values[0] > 0.0

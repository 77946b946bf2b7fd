"""The settings: what is taken, what is refused, and by which name."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from mechanicd.tuner import ConfigError, TunerConfig

NO_NUMBERS = [math.nan, math.inf, -math.inf, None, "0.5", "much", [0.5], 1j, True, 10**400, torch.ones(2)]

REFUSED = {
    "convention": ["", "Paper", "adam", None, 3, ["paper"]],
    "betas": [
        *[(), [0.0], [-0.5], [1.0000000001], [0.9, math.nan], [math.inf], [None], ["0.9"], [True], [10**400], [0.9] * 65],
        *[0.9, None, "0.9", "1", b"1", 3, {}],
    ],
    "s_decay": [*NO_NUMBERS, -1e-300, -1.0, 1.0000001e6],
    "s_init": [*NO_NUMBERS, 0.0, -0.0, -1e-8, 1.0000001e6],
    "eps": [*NO_NUMBERS, 0.0, -1e-8, 1.0000001],
    "initial_wealth": [*NO_NUMBERS, 0.0, -1e-8, 1.0000001e6],
    "scale_groups": [(), "all", None, 3, [""], [1], [None], ["x" * 257], ["a", "b", "a"], [str(i) for i in range(65_537)]],
}

TAKEN = {
    "convention": ["paper", "pytorch", "optax", "theory"],
    "betas": [[1.0], (1,), [5e-324], [0.5] * 64, np.array([0.9, 0.99]), torch.tensor([0.5, 0.75]), (b for b in (0.5, 1.0))],
    "s_decay": [0.0, 0, 1e6, 5e-324, np.float64(0.5), np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)],
    "s_init": [5e-324, 1, 1e6, np.float32(0.5)],
    "eps": [5e-324, 1e-8, 1, 1.0],
    "initial_wealth": [5e-324, 1, 1e6],
    "scale_groups": [["all"], ("ä" * 256,), [str(i) for i in range(1000)], {"a": 1, "b": 2}],
}


def cases(table: dict[str, list]) -> list:
    return [
        pytest.param(field, value, id=f"{field}-{index}")
        for field, values in table.items()
        for index, value in enumerate(values)
    ]


def test_every_field_has_cases():
    assert list(REFUSED) == list(TAKEN) == [field.name for field in dataclasses.fields(TunerConfig)]


@pytest.mark.parametrize(("field", "value"), cases(REFUSED))
def test_a_bad_value_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ConfigError) as refusal:
        TunerConfig(**{field: value})
    assert refusal.value.field == field
    assert refusal.value.reason == "INVALID_CONFIG"
    assert str(refusal.value).startswith(f"{field}: ")


def endless(value):
    """More values than anyone counts, and an error where all of them are asked for."""
    for _ in range(100_000):
        yield value
    raise AssertionError("all of them were read")


@pytest.mark.parametrize(
    ("field", "value"), [("betas", 0.9), ("betas", math.nan), ("scale_groups", "a"), ("scale_groups", None)]
)
def test_values_are_counted_before_they_are_looked_at(field, value):
    with pytest.raises(ConfigError, match="more than") as refusal:
        TunerConfig(**{field: endless(value)})
    assert refusal.value.field == field


class Name(str):
    """A name that counts comparisons."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.compared += 1
        return super().__eq__(other)


@pytest.mark.parametrize("count", [100, 65_536])
def test_a_name_that_appears_twice_is_found_in_one_pass(count):
    names = [Name(f"g{index}") for index in range(count - 1)]
    Name.compared = 0
    with pytest.raises(ConfigError, match=f"'g{count - 2}' appears twice"):
        TunerConfig(scale_groups=[*names, Name(f"g{count - 2}")])
    assert Name.compared <= count


@pytest.mark.parametrize("name", ["\ud800", "layer\udcff.weight"])
def test_a_name_that_is_no_unicode_text_is_refused(name):
    with pytest.raises(ConfigError, match="UTF-8"):
        TunerConfig(scale_groups=[name])


@pytest.mark.parametrize(("field", "value"), cases(TAKEN))
def test_a_good_value_is_taken_and_kept_as_plain_floats_and_strings(field, value):
    kept = getattr(TunerConfig(**{field: value}), field)
    for part in kept if isinstance(kept, tuple) else (kept,):
        assert type(part) in (float, str)


def test_the_defaults_are_algorithm_1s():
    config = TunerConfig()
    assert config.convention == "paper"
    assert config.betas == (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
    assert (config.s_decay, config.s_init, config.eps) == (0.01, 1e-8, 1e-8)
    assert config.scale_groups == ("all",)


def test_a_message_says_what_was_given_and_what_is_expected():
    with pytest.raises(ConfigError, match=r"^betas: got 1\.5; each must be in \(0, 1\] \[INVALID_CONFIG\]$"):
        TunerConfig(betas=(0.9, 1.5))
    with pytest.raises(ConfigError, match=r"^s_init: got 0\.0; it must be in \(0, 1e\+06\] \[INVALID_CONFIG\]$"):
        TunerConfig(s_init=0)
    with pytest.raises(ConfigError, match="'b' appears twice"):
        TunerConfig(scale_groups=("a", "b", "b"))


def test_a_config_can_not_be_changed_and_equals_its_like():
    config = TunerConfig(betas=[0.5])
    assert config == TunerConfig(betas=(0.5,))
    assert hash(config) == hash(TunerConfig(betas=(0.5,)))
    with pytest.raises(AttributeError):
        config.s_init = 1.0

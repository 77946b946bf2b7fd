"""optax's own tests of an optimizer's behaviour, over `mechanize` around each: a sample, or all with MECHANICD_SOAK=1.

The tests that an optimizer reaches a minimum are left out: they fix a learning rate for each; tests/jax/bases.py tries that.
Complex parameters have to be refused by name.
"""

import functools
import unittest
from typing import Any

import pytest

from mechanicd.jax import mechanize
from tests.support.soak import SOAK

alias_test = pytest.importorskip("optax._src.alias_test", reason="this optax carries no tests")
BEHAVIOURS = (
    "test_explicit_dtype",
    "test_gradient_accumulation",
    "test_optimizers_accept_extra_args",
    "test_optimizers_can_be_wrapped_in_inject_hyperparams",
    "test_preserve_dtype",
    "test_state_shape_dtype_shard_stability",
)
NAMES = [
    name
    for name in unittest.defaultTestLoader.getTestCaseNames(alias_test.AliasTest)
    if name.rstrip("0123456789") in BEHAVIOURS and "lbfgs" not in name
]
SAMPLE = NAMES if SOAK else NAMES[::23]


@pytest.mark.parametrize("name", SAMPLE)
def test_optaxs_own_test(name, monkeypatch):
    plain = alias_test._get_opt

    def mechanized(case: Any, optimizer: str) -> Any:
        factory = plain(case, optimizer)

        @functools.wraps(factory)
        def make(*args: Any, **options: Any) -> Any:
            return mechanize(factory(*args, **options), s_init=1e-4)

        return make

    monkeypatch.setattr(alias_test, "_get_opt", mechanized)
    found = unittest.TestResult()
    alias_test.AliasTest(name).run(found)
    wrong = [trace for _, trace in found.errors + found.failures if not trace.rstrip().endswith("[COMPLEX_PARAMETER]")]
    assert not wrong, found
    assert found.testsRun == 1

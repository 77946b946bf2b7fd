"""Settings as programs get them wrong: `mechanize` refuses them, not the first step inside a callback."""

import math
from typing import Any

import jax.numpy as jnp
import optax
import pytest

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        *[({"deadline": value}, "INVALID_SETTING") for value in (math.nan, -1, None, math.inf, "x")],
        *[({"max_scale": value}, "INVALID_SETTING") for value in ("x", 10**400, 0, math.nan)],
        *[({"betas": value}, "INVALID_CONFIG") for value in (None, 0.9)],
        *[({"labels": value}, "INVALID_LABELS") for value in (5, ["a"], "ab")],
        *[({"target": value}, "INVALID_TARGET") for value in (5, b"127.0.0.1:1")],
        ({"run": 5}, "MALFORMED_NAME"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused_by_mechanize(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        mechanize(optax.sgd(1.0), **{"run": "run", "target": "127.0.0.1:1"} | settings)
    assert refused.value.reason == reason


def test_a_refused_status_leaves_the_run_open() -> None:
    tx = mechanize(optax.sgd(1.0))
    params = {"a": jnp.ones(2)}
    state = tx.init(params)
    with pytest.raises(InvalidArgument) as refused:
        tx.close("succeeded")
    assert refused.value.reason == "INVALID_STATUS"
    tx.update(params, state, params)
    tx.close("finished")

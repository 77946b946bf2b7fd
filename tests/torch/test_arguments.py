"""Settings of a mechanized optimizer as programs get them wrong, when it is made and between two steps."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from mechanicd.client import InvalidArgument
from mechanicd.torch import Mechanized, mechanize


def made(**settings: Any) -> Mechanized:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return mechanize(torch.optim.SGD([parameter], lr=1.0), **settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("ahead", value) for value in ("x", None, 2, [True], {}, "")],
        *[("max_scale", value) for value in ("x", 0, -1, math.nan, 10**400, [1.0])],
        *[("deadline", value) for value in (math.nan, -1, None, math.inf, "x")],
    ],
)
def test_a_setting_is_refused_when_the_optimizer_is_made(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=name) as refused:
        made(**{name: value})
    assert refused.value.reason == "INVALID_SETTING"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_scale", value) for value in (-1, math.nan, "x", "1", 10**400, [1.0], True)],
        *[("frozen", value) for value in ("x", "True", None, 2, [True])],
    ],
)
def test_a_setting_is_refused_when_it_is_set_and_stays_as_it_was(name: str, value: Any) -> None:
    opt = made(max_scale=3.0)
    opt.frozen = True
    with pytest.raises(InvalidArgument, match=name) as refused:
        setattr(opt, name, value)
    assert refused.value.reason == "INVALID_SETTING"
    assert (opt.max_scale, opt.frozen) == (3.0, True)
    opt.step()


def test_settings_may_be_set_between_steps_and_are_kept_by_copies() -> None:
    opt = made()
    opt.step()
    opt.max_scale, opt.frozen = np.float32(0.5), np.True_
    assert (opt.max_scale, opt.frozen) == (0.5, True)
    assert (type(opt.max_scale), type(opt.frozen)) == (float, bool)
    for other in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert (other.max_scale, other.frozen) == (0.5, True)
    opt.max_scale = None
    assert opt.max_scale is None


@pytest.mark.parametrize("state_dict", [None, 5, "x", [], torch.ones(2)])
def test_what_is_no_state_dict_is_refused_and_nothing_changes(state_dict: Any) -> None:
    opt = made()
    opt.step()
    with pytest.raises(InvalidArgument, match="state_dict"):
        opt.load_state_dict(state_dict)
    assert opt.last_step == 1
    opt.step()


def test_a_refused_status_leaves_the_optimizer_open() -> None:
    opt = made()
    opt.step()
    with pytest.raises(InvalidArgument) as refused:
        opt.close("succeeded")
    assert refused.value.reason == "INVALID_STATUS"
    opt.step()
    opt.close("finished")

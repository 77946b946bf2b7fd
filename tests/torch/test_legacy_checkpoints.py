"""Checkpoints that today's program did not write: version 1's, and those of the package mechanic-pytorch."""

import copy
import io
from pathlib import Path

import mechanic_pytorch
import pytest
import torch

from mechanicd.client import ConfigMismatch
from mechanicd.torch import mechanize

VERSION_1 = Path(__file__).with_name("fixtures") / "version_1.pt"
"""Twelve steps of AdamW over a float32 matrix and a bfloat16 vector, s_init=1e-4; written by version 1."""


def test_version_1_goes_on_where_it_was():
    saved = torch.load(VERSION_1, weights_only=True)
    w, b = (torch.nn.Parameter(p.detach()) for p in saved["x"])
    opt = mechanize(torch.optim.AdamW([w, b], lr=1.0), s_init=1e-4)
    opt.load_state_dict(saved["opt"])
    assert opt.scale == saved["scale"]
    for _ in range(5):
        opt.zero_grad()
        (torch.arange(8.0).view(2, 4) @ w - b.float()).square().mean().backward()
        opt.step()
    assert opt.scale == pytest.approx(0.016857463629806044, rel=1e-5)  # what version 1 came to


def theirs(params, store_delta):
    return mechanic_pytorch.mechanize(torch.optim.SGD, store_delta=store_delta)(params, lr=1.0, momentum=0.9)


def steps(problem, opt, count):
    for _ in range(count):
        problem.backward()
        opt.step()


@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize("layout", ["delta", "delta+ref", "ref"])
@pytest.mark.parametrize("store_delta", [True, False])
def test_a_run_of_mechanic_pytorch_goes_on_here(store_delta, layout, through_a_file, new_problem):
    problem = new_problem(torch.float32)
    old = theirs(problem.params, store_delta)
    steps(problem, old, 120)
    saved = old.state_dict()
    if through_a_file:  # its keys are parameters, which weights_only refuses
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        saved = torch.load(file, weights_only=False)
    again = new_problem(torch.float32)
    with torch.no_grad():
        for p, q in zip(again.params, problem.params, strict=True):
            p.copy_(q)
    opt = mechanize(torch.optim.SGD(again.params, lr=1.0, momentum=0.9), convention="pytorch", delta_layout=layout)
    opt.load_state_dict(copy.deepcopy(saved))
    S = float(old.state["_mechanic"]["s"].sum())
    assert S > 1e-4
    assert opt.scale == pytest.approx(S, rel=1e-6)
    assert "step=120" in repr(opt)
    for _ in range(20):
        steps(problem, old, 1)
        steps(again, opt, 1)
        S = float(old.state["_mechanic"]["s"].sum())
        assert opt.scale == pytest.approx(S, rel=0.02 if store_delta else 0.05), (
            "it takes λ's term with x after BASE's step, in float32"
        )
    for p, q in zip(problem.params, again.params, strict=True):
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "convention"),
        ({"convention": "pytorch", "s_decay": 0.1}, "s_decay"),
        ({"convention": "pytorch", "betas": (0.9,)}, "betas"),
        ({"convention": "pytorch", "scale_groups": "tensor"}, "scale_groups"),
    ],
)
def test_other_settings_than_its_own_are_refused_by_name(settings, field, new_problem):
    problem = new_problem(torch.float32)
    old = theirs(problem.params, True)
    steps(problem, old, 3)
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0, momentum=0.9), **settings)
    with pytest.raises(ConfigMismatch) as caught:
        opt.load_state_dict(old.state_dict())
    assert caught.value.metadata == {"field": field}

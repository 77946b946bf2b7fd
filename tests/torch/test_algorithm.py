"""The mechanized step is Algorithm 1: held to a plain numpy one, and to the authors' own package."""

import math

import mechanic_pytorch
import pytest
import torch

from mechanicd.torch import mechanize

EVERY_BASE = pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "rmsprop"])


@EVERY_BASE
def test_closed_loop_in_float64_is_algorithm_1(name, problem, oracle, bases, gap):
    """60 steps, in which S grows from 0 to where it stays; later any rounding grows, since training is chaotic."""
    make, base = bases[name]
    plain = oracle(problem.params, base)
    opt = mechanize(make(problem.params))
    for _ in range(60):
        problem.backward()
        opt.step()
        plain.step(problem.gradients(plain.x))
        assert math.isclose(opt.scale, plain.S, rel_tol=1e-12, abs_tol=1e-18)
        assert gap(problem.params, plain.x) <= 1e-12
    assert plain.S > 1e-3  # S has come to life


@EVERY_BASE
def test_300_steps_on_the_same_gradients_are_algorithm_1(name, problem, oracle, bases, gap):
    make, base = bases[name]
    plain = oracle(problem.params, base)
    opt = mechanize(make(problem.params))
    first = problem.backward()
    for _ in range(300):
        last = problem.backward()
        opt.step()
        plain.step([p.grad.numpy() for p in problem.params])
        assert math.isclose(opt.scale, plain.S, rel_tol=1e-12, abs_tol=1e-18)
        assert gap(problem.params, plain.x) <= 1e-12
    assert last < 0.5 * first


@EVERY_BASE
def test_float32_stays_near_algorithm_1_in_float64(name, new_problem, oracle, bases, gap):
    problem = new_problem(torch.float32)
    make, base = bases[name]
    plain = oracle(problem.params, base)
    opt = mechanize(make(problem.params))
    for _ in range(300):
        problem.backward()
        opt.step()
        plain.step([p.grad.double().numpy() for p in problem.params])
        assert math.isclose(opt.scale, plain.S, rel_tol=5e-5)
        assert gap(problem.params, plain.x) <= 5e-5


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_convention_pytorch_is_the_authors_package(base, new_problem):
    """Without decay, which that package evaluates at x_{t+1}, S and x are its own."""
    ours, theirs = new_problem(), new_problem()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # the package keeps its s, m, v, r in the default dtype
    try:
        reference = mechanic_pytorch.mechanize(base, s_decay=0.0, store_delta=True)(theirs.params, lr=1.0)
        opt = mechanize(base(ours.params, lr=1.0), s_decay=0.0, convention="pytorch")
        for _ in range(40):
            ours.backward()
            theirs.backward()
            opt.step()
            reference.step()
            S = float(reference.state["_mechanic"]["s"].sum())
            assert math.isclose(opt.scale, S, rel_tol=1e-9)
            for p, q in zip(ours.params, theirs.params, strict=True):
                torch.testing.assert_close(p, q, rtol=0, atol=1e-9)
    finally:
        torch.set_default_dtype(default)
    assert opt.scale > 1e-3


def test_gradients_that_come_and_go(problem, oracle, bases, gap):
    """A parameter without a gradient is not moved and not in the reductions; it catches up when it has one again."""
    make, base = bases["momentum"]
    plain = oracle(problem.params, base)
    opt = mechanize(make(problem.params))
    for t in range(60):
        without = [i for i in range(4) if t % (i + 3) == 1]
        if t < 10:
            without = [*without, 3]  # has its first gradient when S is no longer 0
        before = [p.detach().clone() for p in problem.params]
        problem.backward(without)
        opt.step()
        plain.step(problem.gradients(plain.x, without))
        for i in without:
            assert torch.equal(problem.params[i], before[i])
        assert math.isclose(opt.scale, plain.S, rel_tol=1e-12, abs_tol=1e-18)
        assert gap(problem.params, plain.x) <= 1e-12
    assert plain.S > 1e-4


def test_parameters_added_later_join_with_delta_zero(problem, oracle, bases, gap):
    make, base = bases["sgd"]
    early, late = problem.params[:2], problem.params[2:]
    plain = oracle(early, base)
    opt = mechanize(make(early))
    for t in range(50):
        if t == 20:
            opt.add_param_group({"params": late})
            plain.add(late)
        problem.backward()
        opt.step()
        plain.step([p.grad.numpy() for p in (problem.params if t >= 20 else early)])
        assert math.isclose(opt.scale, plain.S, rel_tol=1e-12, abs_tol=1e-18)
        assert gap(problem.params, plain.x) <= 1e-12 if t >= 20 else torch.equal(late[0], problem.start[2])
    assert len(opt.param_groups) == len(opt.base.param_groups) == 2
    assert not torch.equal(late[0], problem.start[2])


def test_param_groups_keep_their_own_settings(problem, oracle, gap):
    """Two groups with other learning rates under one S: the step of each is BASE's own, scaled."""

    class TwoRates:
        def update(self, i, x, g):
            return -(0.1 if i < 2 else 1.0) * g

    plain = oracle(problem.params, TwoRates())
    groups = [{"params": problem.params[:2], "lr": 0.1}, {"params": problem.params[2:]}]
    opt = mechanize(torch.optim.SGD(groups, lr=1.0))
    for _ in range(50):
        problem.backward()
        opt.step()
        plain.step(problem.gradients(plain.x))
    assert math.isclose(opt.scale, plain.S, rel_tol=1e-12)
    assert gap(problem.params, plain.x) <= 1e-12


@pytest.mark.parametrize(("kind", "parts"), [("param_group", [(0, 2), (2, 4)]), ("tensor", [(0, 1), (1, 2), (2, 3), (3, 4)])])
def test_each_scale_group_has_a_tuner_of_its_own(kind, parts, problem, oracle, bases, gap):
    """S of a group is that of an Algorithm 1 which knows of no other group."""
    make, _ = bases["sgd"]
    plains = [oracle(problem.params[a:b], bases["sgd"][1]) for a, b in parts]
    opt = mechanize(make([{"params": problem.params[:2]}, {"params": problem.params[2:]}]), scale_groups=kind)
    for _ in range(50):
        problem.backward()
        opt.step()
        for plain, (a, b) in zip(plains, parts, strict=True):
            plain.step([p.grad.numpy() for p in problem.params[a:b]])
            assert gap(problem.params[a:b], plain.x) <= 1e-12
        assert opt.scales == pytest.approx([plain.S for plain in plains], rel=1e-12, abs=1e-18)
    assert len(set(opt.scales)) == len(parts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_parameters_train_with_delta_in_float32(dtype, new_problem):
    problem = new_problem(dtype)
    opt = mechanize(torch.optim.SGD(problem.params, lr=1.0))
    first = problem.backward()
    for _ in range(200):
        last = problem.backward()
        opt.step()
    assert all(p.dtype is dtype and p.isfinite().all() for p in problem.params)
    assert {entry["mechanic_delta"].dtype for entry in opt.state_dict()["state"].values()} == {torch.float32}
    assert last < 0.5 * first


def test_dtypes_can_be_mixed(new_problem):
    problem = new_problem(torch.float32)
    extra = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    double = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    opt = mechanize(torch.optim.SGD([*problem.params, extra, double], lr=1.0))
    for _ in range(60):
        opt.zero_grad()
        (problem.loss(problem.params) + (extra**2).sum() + double**2).backward()
        opt.step()
    assert opt.scale > 1e-3
    assert extra.abs().max() < 1
    assert abs(double) < 1

"""The whole step, closed loop, against optax.contrib.mechanize; and against this project's own PyTorch client."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import mechanicd.torch
from mechanicd.jax import mechanize, scale, scales
from mechanicd.tuner import CONVENTIONS, Reductions, Tuner, TunerConfig, TunerState
from tests.tuner import test_parity as parity

STEPS = 400


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


problems = pytest.mark.parametrize("problem_name", ["Quadratic", "LogisticRegression"])
bases = pytest.mark.parametrize("base", ["SGD", "SGD+momentum+decay", "AdamW"])
OURS = {"convention": "optax", "s_init": 1e-6, "delta_layout": "ref"}


@bases
def test_convention_optax_through_the_server_is_optax_contrib_mechanize(base, server, project, capsys):
    """Closed loop: each goes where its own S takes it."""
    problem, make = parity.LogisticRegression(), parity.OPTAX_BASES[base]
    theirs, _ = train(parity, problem, optax.contrib.mechanize(make(), s_init=1e-6), optax_scale)
    with mechanize(make(), run="r", target=server.target, project=project, **OURS) as tx:
        ours, _ = train(parity, problem, tx, scale)
        assert tx.flush() == STEPS
    worst = gap(ours, theirs)
    with capsys.disabled():
        print(f"\nclosed loop against optax, {base}: S differs by {worst:.1e} at worst in {STEPS} steps")
    assert theirs[-1] > 1000 * 1e-6
    assert worst <= 1e-9


@problems
@bases
def test_on_optaxs_own_trajectory_each_s_is_optaxs(base, problem_name, server, project):
    """Teacher-forced: each step is given optax's x. The quadratic, once S is near the edge of stability, amplifies a rounding
    error a million times in 100 steps, also optax's against itself, so that closed loop says nothing there."""
    problem, make = getattr(parity, problem_name)(), parity.OPTAX_BASES[base]
    theirs, path = train(parity, problem, optax.contrib.mechanize(make(), s_init=1e-6), optax_scale)
    with mechanize(make(), run="r", target=server.target, project=project, **OURS) as tx:
        ours, _ = train(parity, problem, tx, scale, path)
        assert tx.flush() == STEPS
    assert theirs[-1] > 1000 * 1e-6
    assert gap(ours, theirs) <= 1e-12


def test_another_convention_does_not_pass_for_optax():
    problem, make = parity.LogisticRegression(), parity.OPTAX_BASES["AdamW"]
    theirs, _ = train(parity, problem, optax.contrib.mechanize(make(), s_init=1e-6), optax_scale)
    ours, _ = train(parity, problem, mechanize(make(), **{**OURS, "convention": "pytorch"}), scale)
    assert gap(ours, theirs) > 1e-3


def optax_scale(state: Any) -> float:
    return float(np.sum(state.s))


def gap(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))


def train(parity: Any, problem: Any, tx: Any, S_of: Callable[[Any], float], path: Any = None) -> tuple[list[float], list[Any]]:
    """S after each step, and x before each; along `path` where it is given."""
    params = [jnp.asarray(part) for part in parity.parts(problem, problem.start)]
    state, update, scales, passed = tx.init(params), jax.jit(tx.update), [], []
    for t in range(STEPS):
        params = params if path is None else path[t]
        passed.append(params)
        grads = [jnp.asarray(part) for part in parity.parts(problem, problem.gradient(parity.flat(params), t))]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        scales.append(S_of(state))
    return scales, passed


@pytest.mark.parametrize("layout", ["delta", "delta+ref"])
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("groups", ["all", "tensor"])
def test_pytorch_and_jax_agree(groups, convention, layout, server, project, history):
    """Two runs, each closed loop."""
    problem = parity.LogisticRegression()
    options = {"convention": convention, "scale_groups": groups, "delta_layout": layout, "s_init": 1e-4}
    where = {"target": server.target, "project": project}
    tensors = [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in parity.parts(problem, problem.start)]
    opt = mechanicd.torch.mechanize(torch.optim.SGD(tensors, lr=0.5, momentum=0.9), run="torch", **where, **options)
    params = [jnp.asarray(part) for part in parity.parts(problem, problem.start)]
    tx = mechanize(optax.sgd(0.5, momentum=0.9), run="jax", **where, **options)
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(100):
        for p, part in zip(tensors, parity.parts(problem, problem.gradient(parity.flat(tensors), t)), strict=True):
            p.grad = torch.from_numpy(part)
        opt.step()
        grads = [jnp.asarray(part) for part in parity.parts(problem, problem.gradient(parity.flat(params), t))]
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(parity.flat(params), parity.flat(tensors), rtol=1e-9, atol=1e-12)
    opt.close()
    tx.close()
    assert scales(state) == pytest.approx(opt.scales, rel=1e-9)
    ours, theirs = (history(server.target, name, project) for name in ("jax", "torch"))
    assert [r.step for r in ours] == [r.step for r in theirs] == list(range(1, 101))
    for a, b in zip(ours, theirs, strict=True):
        assert list(a.scale) == pytest.approx(list(b.scale), rel=1e-9)
    names = ("all",) if groups == "all" else ("0", "1")
    config = TunerConfig(convention=convention, s_init=1e-4, scale_groups=names)
    tuner, state_here = Tuner(config), TunerState.initial(config)
    for record in ours:
        sums = record.reductions
        columns = sums.delta_dot_g, sums.delta_dot_x, sums.g_norm_sq, sums.x_norm_sq
        fed = [Reductions(*four) for four in zip(*columns, strict=True)]
        state_here = tuner.update(state_here, fed)
        assert state_here.scale == tuple(record.scale), "PyTorch's tuner, fed with the same reductions"


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_same_numbers_reduce_to_the_same_four_scalars(dtype):
    from mechanicd.jax import _reduce
    from mechanicd.jax._groups import Groups
    from mechanicd.torch import _reference

    make = np.random.default_rng(0)
    shapes = [(300, 200), (77,), ()]
    arrays = [[make.standard_normal(shape) * 10.0 ** make.uniform(-6, 6) for shape in shapes] for _ in range(3)]
    jaxes = [[jnp.asarray(a, dtype) for a in column] for column in arrays]
    torches = [[torch.tensor(np.asarray(a, np.float64)).to(getattr(torch, dtype)) for a in column] for column in jaxes]
    delta, grads, x = torches
    params = [torch.nn.Parameter(p) for p in x]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    for groups, index in ([params], (0, 0, 0)), ([[params[0]], params[1:]], (0, 1, 1)):
        theirs = _reference.reduce(groups, dict(zip(params, delta, strict=True)))
        names = tuple(f"g{i}" for i in range(len(groups)))
        ours = _reduce.reduce(Groups(names, index), *jaxes)
        for i, wanted in enumerate(theirs):
            for name in ("delta_dot_g", "delta_dot_x", "g_norm_sq", "x_norm_sq"):
                size = float(np.sqrt(ours.g_norm_sq[i] * ours.x_norm_sq[i])) if name.startswith("delta") else 0.0
                assert float(getattr(ours, name)[i]) == pytest.approx(getattr(wanted, name), rel=1e-12, abs=1e-12 * size)

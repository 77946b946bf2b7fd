"""S against the two published packages, at every step: the conventions `optax` and `pytorch` are those packages.

A package runs its own training, closed loop, in float64. Of each step only its x_t, g_t and Δ_t are taken; the reductions
are computed from these apart from it, correctly rounded, and go to our tuner, which keeps its own state from start to end.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import optax
import pytest
import torch
from mechanic_pytorch import mechanize as mechanize_pytorch
from sklearn.datasets import load_breast_cancer

from mechanicd.tuner import Reductions, Tuner, TunerConfig

STEPS = 400
TOLERANCE = 1e-12  # the worst seen is 3e-15
Array = np.ndarray
Trajectory = Iterator[tuple[Reductions, float]]


class Quadratic:
    """20 dimensions, condition number 1e4, turned so that no coordinate is an eigenvector; two tensors."""

    shapes = ((3, 4), (8,))

    def __init__(self) -> None:
        make = np.random.default_rng(0)
        turn, _ = np.linalg.qr(make.standard_normal((20, 20)))
        self.A = turn * np.geomspace(1e-4, 1.0, 20) @ turn.T
        self.best, self.start = make.standard_normal((2, 20))

    def loss(self, x: Array) -> float:
        return float((x - self.best) @ self.A @ (x - self.best)) / 2

    def gradient(self, x: Array, t: int) -> Array:
        return self.A @ (x - self.best)


class LogisticRegression:
    """Benign or malignant: 569 real tumours, 30 measures and a bias, minibatches of 32."""

    shapes = ((30,), (1,))

    def __init__(self) -> None:
        measures, label = load_breast_cancer(return_X_y=True)
        measures = (measures - measures.mean(axis=0)) / measures.std(axis=0)
        self.inputs, self.sign = np.hstack([measures, np.ones((len(label), 1))]), 2.0 * label - 1.0
        make = np.random.default_rng(1)
        self.start = 0.1 * make.standard_normal(31)
        self.batches = [make.choice(len(label), 32, replace=False) for _ in range(STEPS)]

    def loss(self, x: Array) -> float:
        return float(np.logaddexp(0.0, -self.sign * (self.inputs @ x)).mean())

    def gradient(self, x: Array, t: int) -> Array:
        inputs, sign = self.inputs[self.batches[t]], self.sign[self.batches[t]]
        return inputs.T @ (-sign / (1.0 + np.exp(sign * (inputs @ x)))) / len(sign)


Problem = Quadratic | LogisticRegression

OPTAX_BASES = {
    "SGD": lambda: optax.sgd(1.0),
    "SGD+momentum+decay": lambda: optax.chain(optax.add_decayed_weights(0.01), optax.sgd(1.0, momentum=0.9)),
    "AdamW": lambda: optax.adamw(1.0, weight_decay=0.01),
}
TORCH_BASES = {
    "SGD": (torch.optim.SGD, {"lr": 1.0}),
    "SGD+momentum+decay": (torch.optim.SGD, {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.01}),
    "AdamW": (torch.optim.AdamW, {"lr": 1.0, "weight_decay": 0.01}),
}

problems = pytest.mark.parametrize("problem_of", [Quadratic, LogisticRegression], ids=["quadratic", "logistic"])
bases = pytest.mark.parametrize("base", list(OPTAX_BASES))
delta_kept = pytest.mark.parametrize("store_delta", [True, False], ids=["delta-stored", "delta-recomputed"])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Both frameworks in float64, torch on one thread; all as before afterwards."""
    x64, dtype, threads = jax.config.jax_enable_x64, torch.get_default_dtype(), torch.get_num_threads()
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    jax.config.update("jax_enable_x64", x64)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@problems
@bases
def test_convention_optax_is_optax_contrib_mechanize_at_every_step(problem_of, base):
    problem = problem_of()
    config = TunerConfig(convention="optax", s_init=1e-6)
    assert worst_gap(config, optax_run(problem, OPTAX_BASES[base])) <= TOLERANCE


@problems
@bases
@delta_kept
def test_convention_pytorch_is_mechanic_pytorch_at_every_step(problem_of, base, store_delta):
    run = pytorch_run(problem_of(), *TORCH_BASES[base], store_delta)
    assert worst_gap(TunerConfig(convention="pytorch"), run) <= TOLERANCE


@pytest.mark.parametrize("convention", ["paper", "pytorch", "theory"])
def test_no_other_convention_passes_for_optax(convention):
    config = TunerConfig(convention=convention, s_init=1e-6)
    assert worst_gap(config, optax_run(Quadratic(), OPTAX_BASES["AdamW"])) > 1e-3


@pytest.mark.parametrize("convention", ["paper", "optax", "theory"])
def test_no_other_convention_passes_for_mechanic_pytorch(convention):
    run = pytorch_run(Quadratic(), *TORCH_BASES["AdamW"], store_delta=True)
    assert worst_gap(TunerConfig(convention=convention), run) > 1e-3


def test_mechanic_pytorch_decays_towards_x_after_base_ran():
    """Its λ term takes x_t + u_t, since BASE has moved the parameters by then. With Algorithm 1's x_t, S would differ."""
    run = pytorch_run(Quadratic(), *TORCH_BASES["SGD"], store_delta=True, x_before_base=True)
    assert worst_gap(TunerConfig(convention="pytorch"), run) > 1e-6


def worst_gap(config: TunerConfig, trajectory: Trajectory) -> float:
    """The largest relative difference of S over all steps."""
    tuner = Tuner(config)
    state, worst, steps = tuner.init(), 0.0, 0
    for reductions, theirs in trajectory:
        state = tuner.update(state, reductions)
        worst, steps = max(worst, abs(state.scale[0] - theirs) / theirs), steps + 1
    assert steps == STEPS
    assert theirs > 1000 * config.s_init, "nothing was learned, so nothing was compared"
    return worst


def optax_run(problem: Problem, base: Callable[[], optax.GradientTransformation]) -> Trajectory:
    """Yields the reductions of step t and optax's S_{t+1}. It keeps x_ref and finds Δ = (x − x_ref)/(S + ε) anew each step."""
    optimizer = optax.contrib.mechanize(base(), s_init=1e-6)
    update = jax.jit(optimizer.update)
    params = [jax.numpy.asarray(part) for part in parts(problem, problem.start)]
    state = optimizer.init(params)
    for t in range(STEPS):
        x = flat(params)
        g = problem.gradient(x, t)
        delta = (x - flat(state.x0)) / (float(np.sum(state.s)) + 1e-8)
        updates, state = update([jax.numpy.asarray(part) for part in parts(problem, g)], state, params)
        params = optax.apply_updates(params, updates)
        yield reduce(delta, g, x), float(np.sum(state.s))
    assert problem.loss(flat(params)) < problem.loss(problem.start) / 2


def pytorch_run(
    problem: Problem, base: type[torch.optim.Optimizer], options: dict, store_delta: bool, x_before_base: bool = False
) -> Trajectory:
    """Yields the reductions of step t and mechanic-pytorch's S_{t+1}."""
    params = [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in parts(problem, problem.start)]
    after_base: list[Array] = []

    class Watched(base):
        def step(self, closure=None):
            result = super().step(closure)
            after_base[:] = [flat(params)]
            return result

    optimizer = mechanize_pytorch(Watched, store_delta=store_delta)(params, **options)
    for t in range(STEPS):
        x = flat(params)
        g = problem.gradient(x, t)
        delta = pytorch_delta(optimizer.state.get("_mechanic"), params, x, store_delta)
        for p, part in zip(params, parts(problem, g), strict=True):
            p.grad = torch.from_numpy(part)
        optimizer.step()
        yield reduce(delta, g, x if x_before_base else after_base[0]), float(optimizer.state["_mechanic"]["s"].sum())
    assert problem.loss(flat(params)) < problem.loss(problem.start) / 2


def pytorch_delta(state: dict | None, params: Sequence[torch.Tensor], x: Array, store_delta: bool) -> Array:
    """Δ_t as the package has it: kept, or found anew from x_ref."""
    if state is None:
        return np.zeros_like(x)
    if store_delta:
        return flat([state[p]["delta"] for p in params])
    return (x - flat([state[p]["ref"] for p in params])) / (float(state["s"].sum()) + 1e-8)


def reduce(delta: Array, g: Array, x: Array) -> Reductions:
    def dot(a: Array, b: Array) -> float:
        return math.fsum((a * b).tolist())

    return Reductions(dot(delta, g), dot(delta, x), dot(g, g), dot(x, x))


def parts(problem: Problem, vector: Array) -> list[Array]:
    """The flat vector cut into the problem's tensors."""
    ends = np.cumsum([math.prod(shape) for shape in problem.shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), problem.shapes, strict=True)]


def flat(tensors: Sequence[Array | jax.Array | torch.Tensor]) -> Array:
    arrays = [t.detach().numpy() if isinstance(t, torch.Tensor) else np.asarray(t) for t in tensors]
    return np.concatenate([array.ravel() for array in arrays])

"""Trainings in numpy: MECHANIC around SGD or Adam on problems that noise, curvature and mistakes make easy or hard.

A training is an iterator of the steps that a trainer would send, with the S that its own tuner gave: what a server would store.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechanicd.runs import StepOutcome, StepRow
from mechanicd.tuner import Reductions, Tuner, TunerConfig

Vector = NDArray[np.float64]
Gradient = Callable[[Vector, np.random.Generator], Vector]
Schedule = Callable[[int], float]


def constant(step: int) -> float:
    return 1.0


def adam(lr: float = 1.0) -> Callable[[Vector], Vector]:
    m: Any = 0.0
    v: Any = 0.0
    t = 0

    def update(g: Vector) -> Vector:
        nonlocal m, v, t
        t += 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return np.asarray(-lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))

    return update


def sgd(momentum: float = 0.0) -> Callable[[Vector], Vector]:
    buffer: Any = 0.0

    def update(g: Vector) -> Vector:
        nonlocal buffer
        buffer = momentum * buffer + g
        return np.asarray(-buffer)

    return update


def train(
    x: Vector,
    gradient: Gradient,
    base: Callable[[Vector], Vector],
    steps: int,
    schedule: Schedule = constant,
    config: TunerConfig | None = None,
    spoil: Callable[[int, Reductions], Reductions] = lambda step, reductions: reductions,
    hold: Callable[[int], bool] = lambda step: False,
    seed: int = 0,
) -> Iterator[StepRow]:
    """The steps of one training.

    Args:
        spoil: what becomes of the reductions on their way: a mistake, an overflow.
        hold: the steps at which the trainer keeps S.
    """
    config = config or TunerConfig()
    tuner, rng = Tuner(config), np.random.default_rng(seed)
    state, delta, reference = tuner.init(), np.zeros_like(x), x.copy()
    with np.errstate(all="ignore"):
        for step in range(1, steps + 1):
            g = gradient(x, rng)
            reductions = spoil(step, Reductions(float(delta @ g), float(delta @ x), float(g @ g), float(x @ x)))
            groups = tuner.groups([reductions])
            h = None if hold(step) else tuner.h(state, groups)
            outcome = StepOutcome.TUNED if h is not None else StepOutcome.HELD if hold(step) else StepOutcome.NON_FINITE
            state = tuner.hold(state) if h is None else tuner.advance(state, h)
            if outcome != StepOutcome.NON_FINITE:
                delta = delta + schedule(step) * base(g)
            x = reference + state.scale[0] * delta
            yield StepRow(
                step,
                step * 10**9,
                outcome,
                *((value,) for value in (*reductions, float("nan") if h is None else h[0], state.scale[0])),
                schedule(step),
            )


def regression(size: int = 20, samples: int = 256, batch: int = 16, noise: float = 0.3, condition: float = 10.0) -> Gradient:
    """Least squares on batches."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(samples, size)) * np.geomspace(1, condition**-0.5, size)
    targets = inputs @ rng.normal(size=size) * 3 + noise * rng.normal(size=samples)

    def gradient(x: Vector, rng: np.random.Generator) -> Vector:
        chosen = rng.integers(samples, size=batch)
        return np.asarray(inputs[chosen].T @ (inputs[chosen] @ x - targets[chosen]) / batch)

    return gradient


def classification(size: int = 20, samples: int = 256, batch: int = 16, hidden: int = 16) -> tuple[Vector, Gradient]:
    """A network of one hidden layer on two interleaved clouds: the start, and the gradient of its logistic loss."""
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(samples, size))
    labels = np.sign(np.sin(2 * inputs[:, 0]) + inputs[:, 1] + 0.3 * rng.normal(size=samples))
    start = np.concatenate((rng.normal(size=size * hidden) / size**0.5, rng.normal(size=hidden) / hidden**0.5))

    def gradient(x: Vector, rng: np.random.Generator) -> Vector:
        chosen = rng.integers(samples, size=batch)
        first, second = x[: size * hidden].reshape(size, hidden), x[size * hidden :]
        active = np.tanh(inputs[chosen] @ first)
        slope = -labels[chosen] / (1 + np.exp(labels[chosen] * (active @ second))) / batch
        back = np.outer(slope, second) * (1 - active**2)
        return np.concatenate(((inputs[chosen].T @ back).ravel(), active.T @ slope))

    return start, gradient

"""Algorithm 1 in plain numpy, written from the paper without a look at the package, and small problems to run it on."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

Array = np.ndarray
BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors here are tiny, and other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SGD:
    def __init__(self, lr: float = 1.0, momentum: float = 0.0) -> None:
        self.lr, self.momentum = lr, momentum
        self.buffer: dict[int, Array] = {}

    def update(self, i: int, x: Array, g: Array) -> Array:
        if self.momentum:
            g = self.momentum * self.buffer[i] + g if i in self.buffer else g
            self.buffer[i] = g
        return -self.lr * g


class AdamW:
    def __init__(self, lr: float = 1.0, weight_decay: float = 0.01) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.moments: dict[int, tuple[int, Array, Array]] = {}

    def update(self, i: int, x: Array, g: Array) -> Array:
        t, m, v = self.moments.get(i, (0, np.zeros_like(x), np.zeros_like(x)))
        t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        self.moments[i] = (t, m, v)
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return -self.lr * (direction + self.weight_decay * x)


class RMSprop:
    def __init__(self, lr: float = 1.0) -> None:
        self.lr = lr
        self.square: dict[int, Array] = {}

    def update(self, i: int, x: Array, g: Array) -> Array:
        v = self.square[i] = 0.99 * self.square.get(i, np.zeros_like(x)) + 0.01 * g * g
        return -self.lr * g / (np.sqrt(v) + 1e-8)


class Algorithm1:
    """MECHANIC with one S for all of `x`; float64, x = x_ref + S·Δ from scratch at each step.

    A parameter whose gradient is None sits the step out.
    """

    def __init__(self, x: Sequence[Tensor], base: SGD | AdamW | RMSprop, s_decay: float = 0.01) -> None:
        self.x: list[Array] = []
        self.x_ref: list[Array] = []
        self.delta: list[Array] = []
        self.base, self.s_decay = base, s_decay
        self.betas = np.array(BETAS)
        self.s = self.m = self.v = self.r = np.zeros(len(BETAS))
        self.add(x)

    def add(self, x: Sequence[Tensor]) -> None:
        for p in x:
            self.x.append(p.detach().double().numpy().copy())
            self.x_ref.append(self.x[-1].copy())
            self.delta.append(np.zeros_like(self.x[-1]))

    @property
    def S(self) -> float:
        return float(self.s.sum())

    def step(self, gradients: Sequence[Array | None]) -> None:
        active = [i for i, g in enumerate(gradients) if g is not None]

        def dot(a: Sequence[Array | None], b: Sequence[Array | None]) -> float:
            return float(sum((a[i] * b[i]).sum() for i in active))

        g, x, delta = gradients, self.x, self.delta
        decay = self.s_decay * self.S * np.sqrt(dot(g, g)) * dot(delta, x) / (np.sqrt(dot(x, x)) + 1e-8)
        h = dot(delta, g) + decay
        self.m = np.maximum(self.betas * self.m, abs(h))
        self.v = self.betas**2 * self.v + h * h
        self.r = np.maximum(0.0, self.betas * self.r - self.s * h)
        self.s = (1e-8 * self.m / len(self.betas) + self.r) / (np.sqrt(self.v) + 1e-8)
        for i in active:
            delta[i] = delta[i] + self.base.update(i, x[i], g[i])
        for i in active:
            x[i] = self.x_ref[i] + self.S * delta[i]


class Problem:
    """A small network's loss, of all its parameters or of some; gradients for torch and for the oracle alike."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        make = torch.Generator().manual_seed(seed)
        sizes = [(6, 8), (8,), (8, 2), (2,)]
        scale = [0.5, 0.1, 0.4, 0.1]
        self.inputs = torch.randn(32, 6, generator=make, dtype=torch.float64)
        self.wanted = torch.stack([self.inputs[:, 0] * self.inputs[:, 1], self.inputs[:, 2]], dim=1)
        self.start = [torch.randn(n, generator=make, dtype=torch.float64) * s for n, s in zip(sizes, scale, strict=True)]
        self.params = [torch.nn.Parameter(p.to(dtype, copy=True)) for p in self.start]

    def loss(self, params: Sequence[Tensor]) -> Tensor:
        W, b, V, c = params
        inputs, wanted = self.inputs.to(W.dtype), self.wanted.to(W.dtype)
        return ((torch.tanh(inputs @ W + b) @ V + c - wanted) ** 2).mean()

    def backward(self, without: Sequence[int] = ()) -> float:
        """Gradients into `params`, but for those `without`, which get None."""
        for p in self.params:
            p.grad = None
        loss = self.loss(self.params)
        loss.backward()
        for i in without:
            self.params[i].grad = None
        return loss.item()

    def gradients(self, x: Sequence[Array], without: Sequence[int] = ()) -> list[Array | None]:
        """The same at the oracle's own x."""
        leaves = [torch.from_numpy(value.copy()).requires_grad_() for value in x]
        found = torch.autograd.grad(self.loss(leaves), leaves)
        return [None if i in without else g.numpy() for i, g in enumerate(found)]


def gap(params: Sequence[Tensor], x: Sequence[Array]) -> float:
    """The largest difference to the oracle's x."""
    return max(float(np.abs(p.detach().double().numpy() - value).max()) for p, value in zip(params, x, strict=True))


@pytest.fixture
def problem() -> Problem:
    return Problem()


@pytest.fixture
def new_problem() -> Callable[..., Problem]:
    return Problem


@pytest.fixture
def oracle() -> type[Algorithm1]:
    return Algorithm1


@pytest.fixture(name="gap")
def gap_fixture() -> Callable[..., float]:
    return gap


@pytest.fixture
def bases() -> dict[str, tuple[Callable[..., torch.optim.Optimizer], SGD | AdamW | RMSprop]]:
    """Each BASE twice: torch's, and the oracle's own."""
    return {
        "sgd": (lambda p: torch.optim.SGD(p, lr=1.0), SGD()),
        "momentum": (lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), SGD(momentum=0.9)),
        "adamw": (lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.01), AdamW()),
        "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=1.0), RMSprop()),
    }

"""Tries out whether an optimizer remembers where the weights were.

Two copies of it get the same gradients, with their parameters kept at two places: x and −x, which have the same norms. Then
both are put at x, and go on. What an optimizer makes of gradients and norms is the same in both from then on. If an update or
the state still differs by a part of 2x, that is a memory of places: slow weights, an average, a z, the weights at the start.

The copies have small parameters of their own, with as many dimensions as the real ones. An optimizer that can't be copied, or
does not run so, is not judged.
"""

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.torch import _global_hooks
from mechanicd.torch._nested import optimizers

SIDE: Final = 4
"""The size of a small parameter, in each dimension at most."""
KINDS: Final = 2
"""How many parameters of each number of dimensions are kept in a param group."""
APART: Final = 7
"""Steps at two places; Lookahead's period is 5 or 6."""
TOGETHER: Final = 13
"""Steps from the same place. In the first of them an optimizer may still compare x with the x of the step before."""
SETTLED: Final = APART + 2
SIZE: Final = 4.0
"""The root mean square of x."""
STEEP: Final = 100.0
"""The root mean square of g: it is large beside what weight decay adds to it, which is no memory even in a momentum."""
RATE: Final = 1e-3
"""The learning rate: steps are short, so that what is as long as x comes from x."""
LEFT: Final = 0.05
"""The part of 2x, or of itself, by which an update or a state may differ at the end, in the mean."""
LITTLE: Final = 1e-4
"""The part of x below which a difference is rounding."""
LARGE: Final = 1 << 24
"""Elements beside the parameters that are copied at most."""


def memory_of(base: Optimizer) -> str:
    """How BASE remembers where the weights were; empty if it does not, or can't be judged."""
    try:
        if _has_copies(base):
            return "keeps a copy of the weights"
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return ""  # its step may wait for other ranks
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _global_hooks.held(), _eager():
            warnings.simplefilter("ignore")
            return _judged(base)
    except Exception:  # it does not run with these parameters: no judgement
        return ""


def _eager() -> AbstractContextManager[Any]:
    """Nothing is compiled for a few steps of a few elements."""
    set_stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if set_stance is None else set_stance("force_eager")


def _judged(base: Optimizer) -> str:
    near, far = _Twin(base), _Twin(base)
    here = [p.detach().clone() for p in near.params]
    for step in range(APART + TOGETHER):
        for twin, sign in ((near, 1.0), (far, -1.0 if step < APART else 1.0)):
            with torch.no_grad():
                for p, x in zip(twin.params, here, strict=True):
                    p.copy_(sign * x)
            twin.step(step)
        if step >= SETTLED and any(_drawn(p, q) for p, q in zip(near.params, far.params, strict=True)):
            return "is drawn to where the weights were"
    for one, other in zip(near.optimizers, far.optimizers, strict=True):
        for name, value, shifted in _pairs("", vars(one), vars(other)):
            if _remembers(value, shifted):
                return f'keeps where the weights were (as "{name}")'
    return ""


class _Twin:
    """A copy of an optimizer with small parameters of its own.

    Attributes:
        params: its parameters.
        optimizers: the copy, and those in it.
    """

    def __init__(self, base: Optimizer) -> None:
        originals = optimizers(base)
        small: dict[Tensor, Tensor] = {}
        make = torch.Generator().manual_seed(0)
        for optimizer in originals:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p not in small:
                        shape = [min(size, SIDE) for size in p.shape]
                        x = torch.randn(shape, generator=make, dtype=torch.float32, device="cpu")
                        small[p] = torch.nn.Parameter(SIZE * x)
        self.optimizers = [object.__new__(type(optimizer)) for optimizer in originals]
        memo: dict[int, Any] = {id(p): twin for p, twin in small.items()}
        memo |= {id(optimizer): twin for optimizer, twin in zip(originals, self.optimizers, strict=True)}
        for optimizer in originals:
            if "state" in vars(optimizer):
                memo[id(optimizer.state)] = _small_state(optimizer.state, small, memo)
        for optimizer, twin in zip(originals, self.optimizers, strict=True):
            for name, value in vars(optimizer).items():
                if "hooks" in name:
                    twin.__dict__[name] = type(value)()
                elif name != "step" and not (isinstance(value, FunctionType) and value.__closure__):
                    # What is left out may be bound to the original.
                    if id(value) not in memo and sum(t.numel() for t in _tensors(value, set(small))) > LARGE:
                        raise ValueError(f"{name} is too large to copy")
                    twin.__dict__[name] = copy.deepcopy(value, memo)
        self.params: list[Tensor] = []
        for twin in self.optimizers:
            for group in twin.param_groups:
                _adapt(group)
                self.params += [p for p in group["params"] if not any(p is known for known in self.params)]
        train = getattr(self.optimizers[0], "train", None)
        if callable(train):
            train()

    def step(self, number: int) -> None:
        """One step, with gradients that depend on its number alone."""
        torch.default_generator.manual_seed(number)
        make = torch.Generator().manual_seed(number)
        gradients = [STEEP * torch.randn(p.shape, generator=make, dtype=torch.float32, device="cpu") for p in self.params]

        def closure() -> Tensor:
            for p, g in zip(self.params, gradients, strict=True):
                p.grad = g.clone()
            return torch.tensor(1.0, device="cpu")

        closure()
        base: Any = self.optimizers[0]
        base.step(closure)


def _adapt(group: dict[str, Any]) -> None:
    """Makes a copied param group fit for a trial: few parameters, on the CPU, and a short step."""
    kept: list[Tensor] = []
    for p in group["params"]:
        if sum(q.dim() == p.dim() for q in kept) < KINDS:
            kept.append(p)
    group["params"][:] = kept
    for name, value in group.items():
        if isinstance(value, Tensor):
            group[name] = value.cpu()
    if group.get("weight_decay"):
        group["weight_decay"] = 0.0  # it reads x_t, as it may; within a momentum that would look like a memory
    if isinstance(group.get("lr"), float | int | Tensor):
        group["lr"] = RATE + 0.0 * group["lr"]


def _small_state(state: Any, small: dict[Tensor, Tensor], memo: dict[int, Any]) -> Any:
    """A copy of an optimizer's state that fits small parameters."""
    found: defaultdict[Any, Any] = defaultdict(dict)
    for key, entry in state.items():
        if isinstance(key, Tensor) and isinstance(entry, dict):
            found[small[key]] = {
                name: value.detach()[tuple(slice(0, SIDE) for _ in key.shape)].clone().cpu()
                if isinstance(value, Tensor) and value.shape == key.shape
                else copy.deepcopy(value, memo)
                for name, value in entry.items()
            }
        else:
            found[key] = copy.deepcopy(entry, memo)
    return found


def _has_copies(base: Optimizer) -> bool:
    """Whether a tensor of BASE, which is no parameter, equals one."""
    params = {p: p for optimizer in optimizers(base) for group in optimizer.param_groups for p in group["params"]}
    by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
    for p in params:
        by_shape[p.shape].append(p)
    for optimizer in optimizers(base):
        others = _tensors({k: v for k, v in vars(optimizer).items() if k != "param_groups"}, set(params))
        if any(_is_copy(t, p) for t in others for p in by_shape.get(t.shape, [])):
            return True
    return False


def _is_copy(t: Tensor, p: Tensor) -> bool:
    if t.numel() < 2 or (t.device, t.dtype) != (p.device, p.dtype) or t.data_ptr() == p.data_ptr():
        return False
    return bool((p != p.reshape(-1)[0]).any()) and torch.equal(t, p.detach())


def _tensors(value: Any, without: set[Tensor]) -> Iterator[Tensor]:
    """The tensors in a structure, and in the modules of it."""
    if isinstance(value, Tensor):
        if value not in without:
            yield value
    elif isinstance(value, torch.nn.Module):
        yield from (t for t in [*value.parameters(), *value.buffers()] if t not in without)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, without)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, without)


def _pairs(name: str, value: Any, twin: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors of two equal structures, side by side, each with the last name on the way to it."""
    if isinstance(value, Tensor) and isinstance(twin, Tensor):
        yield name, value, twin
    elif isinstance(value, dict) and isinstance(twin, dict):
        for (key, one), other in zip(value.items(), twin.values(), strict=False):
            yield from _pairs(key if isinstance(key, str) else name, one, other)
    elif isinstance(value, list | tuple) and isinstance(twin, list | tuple):
        for one, other in zip(value, twin, strict=False):
            yield from _pairs(name, one, other)


def _gap(value: Tensor, twin: Tensor) -> tuple[float, float]:
    """The mean difference of two tensors, and the mean size of the larger one; 0 and 0 if they can't be compared."""
    if value.shape != twin.shape or not value.is_floating_point() or value.numel() == 0:
        return 0.0, 0.0
    one, other = value.detach().double(), twin.detach().double()
    gap = float((one - other).abs().mean())
    return (gap, float(torch.maximum(one.abs(), other.abs()).mean())) if math.isfinite(gap) else (0.0, 0.0)


def _drawn(p: Tensor, q: Tensor) -> bool:
    """Whether two updates from the same place differ by a part of 2x."""
    return _gap(p, q)[0] > LEFT * 2.0 * SIZE


def _remembers(value: Tensor, twin: Tensor) -> bool:
    """Whether two states differ by a part of themselves; an average has often taken in but little of x so far."""
    gap, size = _gap(value, twin)
    return gap > max(LEFT * size, LITTLE * SIZE)

"""What BASE may be. MECHANIC moves the weights by S times what BASE wanted; a BASE that can't live with that is refused.

    BASE_DIFFERENTIABLE       its step is part of a graph, and what S does to the weights would not be
    BASE_STEPS_IN_BACKWARD    it steps during backward, where there is no S
    BASE_KEEPS_WEIGHTS        it remembers where the weights were (an average, slow weights, z), and S has moved them since;
                              L-BFGS measures the curvature along its own last step
    SPARSE_GRADIENT           it takes sparse gradients only

The first two are seen from outside. For the third a BASE is either known (torch's own, and some names), or is tried out:
`_probe` lets copies of it take a few steps with parameters of a few elements.
"""

import inspect
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import product
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.client import InvalidArgument
from mechanicd.torch import _probe
from mechanicd.torch._delegation import DelegatingOptimizer
from mechanicd.torch._nested import optimizers

KEEP_WEIGHTS: Final = {
    "remembers where the weights were": (
        *(
            "AccSGD",
            "EMA",
            "FTRL",
            "Lookahead*",
            "MADGRAD",
            "*Lookahead",
            "Ranger*",
            "SafeFP16Optimizer",
            "SPlus",
            "SWA",
            "TRAC",
        ),
        "*ScheduleFree*",
    ),
    "finds its learning rate from how far its own steps have come": ("DAdapt*", "DoG", "LDoG", "Prodigy*"),
}
"""What optimizers of these names (patterns) do, for when they can't be tried out."""


def check(base: Optimizer) -> None:
    """Checks that BASE can be a BASE.

    Raises:
        InvalidArgument: BASE_DIFFERENTIABLE, BASE_STEPS_IN_BACKWARD, BASE_KEEPS_WEIGHTS, SPARSE_GRADIENT.
    """
    check_groups(base)
    check_hooks(base)
    if any(isinstance(optimizer, torch.optim.SparseAdam) for optimizer in optimizers(base)):
        raise InvalidArgument(
            "SPARSE_GRADIENT",
            "SparseAdam takes sparse gradients only, and h needs dense ones; use torch.optim.Adam, and sparse=False for an "
            "embedding",
        )
    why = _keeps_weights(base)
    if why:
        raise InvalidArgument(
            "BASE_KEEPS_WEIGHTS",
            f"{type(base).__name__} {why}, but S moves the weights to other places. If it wraps another "
            "optimizer, put it around the mechanized one: Lookahead(mechanize(AdamW(…))). For an average of the weights, use "
            "torch.optim.swa_utils.AveragedModel. Else choose another BASE, or use this one without mechanize()",
        )


def check_groups(base: Optimizer) -> None:
    """Checks what the param groups say; again when one is added.

    Raises:
        InvalidArgument: BASE_DIFFERENTIABLE, BASE_STEPS_IN_BACKWARD.
    """
    for group in [getattr(base, "defaults", {}), *base.param_groups]:
        if group.get("differentiable"):
            raise InvalidArgument(
                "BASE_DIFFERENTIABLE",
                f"{type(base).__name__} has differentiable=True, but gradients through a step would miss what S does to the "
                "weights; use differentiable=False, or this optimizer without mechanize()",
            )
        if group.get("gradient_release"):
            raise _steps_in_backward(base, "has gradient_release=True")


def check_hooks(base: Optimizer) -> None:
    """Checks that no hook of a parameter steps BASE; again at the first step, since hooks may come later.

    Raises:
        InvalidArgument: BASE_STEPS_IN_BACKWARD.
    """
    for group in base.param_groups:
        for p in group["params"]:
            if getattr(p, "_in_backward_optimizers", None):
                raise _steps_in_backward(base, "is applied in backward (_apply_optimizer_in_backward)")
            hooks: list[Mapping[int, Any] | None] = [getattr(p, "_post_accumulate_grad_hooks", None), p._backward_hooks]
            for hook in [hook for kind in hooks for hook in (kind or {}).values()]:
                if any(_holds(optimizer, p) for optimizer in _stepped_by(hook)):
                    raise _steps_in_backward(base, "has a parameter with a hook that steps an optimizer")


def _steps_in_backward(base: Optimizer, what: str) -> InvalidArgument:
    return InvalidArgument(
        "BASE_STEPS_IN_BACKWARD",
        f"{type(base).__name__} {what}: the weights would move during backward, without S. Use an optimizer that steps when "
        "step() is called; remove such hooks before mechanize()",
    )


def _stepped_by(hook: Any) -> Iterator[Optimizer]:
    """The optimizers that a hook may step: one whose method it is, or was made by, and those that it can reach (through its
    arguments, its closure or the globals that it names) if it names anything like "step"."""
    args, keywords = getattr(hook, "args", ()), getattr(hook, "keywords", None) or {}  # of functools.partial
    function = inspect.unwrap(getattr(hook, "func", hook))
    owners: list[Any] = []
    values: list[Any] = [*args, *keywords.values()]
    if isinstance(function, MethodType):
        owners.append(function.__self__)
        function = inspect.unwrap(function.__func__)
    if isinstance(function, FunctionType):
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if _is_full(cell):
                (owners if name == "self" else values).append(cell.cell_contents)
        values += function.__defaults__ or ()
        values += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
        if not any("step" in name for name in code.co_names):
            values = []
    for value in [*owners, *values]:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        for item in inside:
            if isinstance(item, Optimizer):
                yield item


def _is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _holds(optimizer: Optimizer, p: Tensor) -> bool:
    """Whether it would move the parameter without S."""
    if isinstance(optimizer, DelegatingOptimizer):  # mechanized: its step is a step with S
        return False
    return any(p is own for group in optimizer.param_groups for own in group["params"])


def _keeps_weights(base: Optimizer) -> str:
    """How BASE remembers where the weights were; empty if it does not."""
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers(base)):
        return "measures the curvature between the weights where its last step left them and the next ones"
    foreign = [optimizer for optimizer in optimizers(base) if not _is_torchs(optimizer)]
    for optimizer, (why, patterns) in product(foreign, KEEP_WEIGHTS.items()):
        if any(fnmatchcase(type(optimizer).__name__, pattern) for pattern in patterns):
            return why
    return _probe.memory_of(base) if foreign else ""


def _is_torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith(("torch.optim.", "torch.distributed."))

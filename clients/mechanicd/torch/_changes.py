"""What may have happened to the parameters since the last step: some left, some have another form, some have other values.

A training changes its weights from outside in many ways: it loads or averages them, clips or prunes them, swaps in an average,
or has a second optimizer. MECHANIC takes no part in that, so such a change must reach neither Δ nor the sums nor S. Where only
Δ is kept, x moves relative to itself, and nothing need be done. Where x_ref is kept, x is placed at x_ref + S·Δ afresh, so
x_ref moves with x: by x − x_t, where x_t is what the last step left. Elements that nobody changed keep x_ref to the last bit.

A parameter with another dtype or on another device takes what is kept of it along. One of another shape can't: that is refused
before the step changes anything.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from mechanicd.client import InvalidArgument
from mechanicd.torch import _groups, _reference
from mechanicd.torch._memory import Memory


def check(memory: Memory, changed: Sequence[Tensor]) -> None:
    """Checks parameters that are new or have another form than at their last step. Nothing changes here.

    Args:
        changed: these parameters.

    Raises:
        InvalidArgument: COMPLEX_PARAMETER, PARAMETER_RESHAPED, GRADIENT_RESHAPED.
    """
    _groups.refuse_complex([{"params": changed}])
    for p in changed:
        known = memory.form.get(p)
        if known is not None and known[0] != p.shape:
            raise InvalidArgument(
                "PARAMETER_RESHAPED",
                f"a parameter of shape {tuple(known[0])} has the shape {tuple(p.shape)} now, so its Δ does not fit; call "
                "opt.start_again([p]) to train it from where it is, with Δ = 0, and see to BASE's own state (opt.state.pop(p))",
            )
        if p.grad is not None and p.grad.shape != p.shape:
            raise InvalidArgument(
                "GRADIENT_RESHAPED",
                f"a parameter of shape {tuple(p.shape)} has a gradient of shape {tuple(p.grad.shape)}, from before it was "
                "resized; set p.grad = None and call backward() again",
            )


def refuse_meta(params: Iterable[Tensor]) -> None:
    """Checks that every parameter has values.

    Raises:
        InvalidArgument: META_PARAMETER.
    """
    for p in params:
        if p.is_meta:
            raise InvalidArgument(
                "META_PARAMETER",
                f"a parameter of shape {tuple(p.shape)} is on the meta device and has no values. If the model has been "
                "materialised since, its parameters are new objects: build the optimizer after that, or put them into "
                'opt.param_groups[…]["params"]',
            )


@torch.no_grad()
def follow(memory: Memory, p: Tensor) -> None:
    """Brings what is kept of a parameter to its dtype and device; its x stays as it is."""
    S, known = memory.placed[p], memory.delta.get(p)
    if known is None:  # layout "ref"
        x = memory.left.get(p, p.detach())
        known = (x - memory.ref[p].to(x.device)).div_(S)
    D = memory.delta[p] = _reference.new_delta(p).copy_(known)
    ref = memory.ref.pop(p, None)
    if memory.keeps_ref(p):
        same = ref is not None and ref.dtype is p.dtype
        memory.ref[p] = ref.to(p.device) if ref is not None and same else torch.add(p.detach().to(D.dtype), D, alpha=-S)
    memory.left.pop(p, None)
    memory.forget(p)
    memory.note(p)


@torch.no_grad()
def keep(memory: Memory, params: Sequence[Tensor]) -> None:
    """Moves x_ref of each parameter that is not where the last step left it: at `Memory.left`, else at x_ref + S·Δ.

    Args:
        params: parameters whose x_ref is kept.
    """
    unknown = [p for p in params if p not in memory.left and p in memory.delta]
    x_t = {p: torch.empty_like(p, requires_grad=False) for p in unknown}
    _reference.place(
        list(x_t.values()),
        [memory.ref[p] for p in unknown],
        [memory.delta[p] for p in unknown],
        [memory.placed[p] for p in unknown],
    )
    x_t.update((p, memory.left[p]) for p in params if p in memory.left)
    # Layout "ref" after a checkpoint knows no x_t: any x is x_ref + S·Δ for some Δ.
    for (p, before), differs in zip(x_t.items(), _differ([(p.detach(), x) for p, x in x_t.items()]), strict=True):
        if differs and p.isfinite().all():  # with a NaN in x the step will do nothing
            _move_ref(memory, p, before)
            memory.left[p] = p.detach().clone()
    for p in params:
        if p not in memory.left and (p.device.type == "cpu" or memory.recomputes_delta(p)):
            memory.left[p] = p.detach().clone()


def _differ(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool]:
    """Of each two tensors of one shape and dtype, whether a bit differs. One wait for each device; on the CPU by the C library,
    for torch.equal takes eight times as long."""
    found: list[Any] = []
    for a, b in pairs:
        if a.device.type != "cpu":
            found.append((a != b).any())
        elif _memcmp is not None and a.is_contiguous() and b.is_contiguous():
            found.append(_memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size()) != 0)
        else:
            found.append(not torch.equal(a, b))
    for device in {flag.device for flag in found if isinstance(flag, Tensor)}:
        here = [i for i, flag in enumerate(found) if isinstance(flag, Tensor) and flag.device == device]
        for i, flag in zip(here, torch.stack([found[i] for i in here]).tolist(), strict=True):
            found[i] = flag
    return found


def _find_memcmp() -> Callable[[int, int, int], int] | None:
    try:
        memcmp = ctypes.CDLL(None).memcmp
    except (OSError, TypeError, AttributeError):  # not in a C library that is loaded anyway
        return None
    memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    found: Callable[[int, int, int], int] = memcmp
    return found


_memcmp: Final = _find_memcmp()


def _move_ref(memory: Memory, p: Tensor, before: Tensor) -> None:
    """x_ref ← x − S·Δ where x is not what it was `before`.

    For a low-precision parameter x_ref becomes float32: x_ref + S·Δ must round to x, and x may be much smaller than S·Δ.
    """
    x, ref, D = p.detach(), memory.ref[p], memory.delta.get(p)
    there = ref + (x - before) if D is None else torch.add(x.to(D.dtype), D, alpha=-memory.placed[p])
    moved = torch.where(x != before, there, ref.to(there.dtype))
    if ref.dtype is moved.dtype:
        ref.copy_(moved)
    else:
        memory.ref[p] = torch.empty_like(p, dtype=moved.dtype, requires_grad=False).copy_(moved)

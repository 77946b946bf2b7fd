"""What a mechanized optimizer keeps of each parameter between two steps.

    layout        kept                     x after the step
    "delta"       Δ                        x_t + S·u + (S_{t+1} − S_t)·Δ_{t+1}
    "delta+ref"   Δ and x_ref              x_ref + S·Δ
    "ref"         x_ref                    x_ref + S·Δ, with Δ = (x − x_ref)/S recomputed in each step (the paper's line 8)

A recomputed Δ has the rounding errors of x magnified by 1/S, so "ref" is for comparison only. While S is 0, Δ can't be
recomputed at all, so until then that layout keeps it too.

With "delta", a step also keeps a copy of x_t while BASE runs; on the CPU that buffer stays allocated.

A parameter in bfloat16 or float16 has Δ (in float32) and x_ref in every layout: together they are its master copy. x_ref has
the parameter's dtype, or float32 once something else than a step has changed the parameter (`_changes`).
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mechanicd.torch import _reference

Form: TypeAlias = tuple[torch.Size, torch.dtype, torch.device]
Places: TypeAlias = tuple[list[int], list[int], list[torch.Size]]


@dataclass
class Memory:
    """Tables of what is kept. Only parameters that have had a gradient are in them.

    Attributes:
        layout: "delta", "delta+ref" or "ref".
        delta: Δ of each parameter that keeps it; float32 for low-precision parameters, else their dtype.
        ref: x_ref of each that keeps it.
        placed: the S at which each parameter was placed last, so that x_ref = x − placed·Δ even if it sat out some steps.
        form: shape, dtype and device of each, as of its last step.
        left: x as the last step left it, of parameters whose x_ref is kept: where that can't be computed again, because Δ is
            not kept; on the CPU, where that would take longer; and where x_ref has followed a change from outside.
        places: ids, addresses and shapes of the parameters that were last found to fit; None once one has been dropped.
    """

    layout: str = "delta"
    delta: dict[Tensor, Tensor] = field(default_factory=dict)
    ref: dict[Tensor, Tensor] = field(default_factory=dict)
    placed: dict[Tensor, float] = field(default_factory=dict)
    form: dict[Tensor, Form] = field(default_factory=dict)
    left: dict[Tensor, Tensor] = field(default_factory=dict)
    places: Places | None = None

    def join(self, p: Tensor, S: float) -> None:
        """Gives a new parameter its Δ = 0, and its x_ref if it keeps one."""
        if p not in self.placed:
            self.delta[p] = _reference.new_delta(p)
            self.placed[p] = S
            if self.keeps_ref(p):
                self.ref[p] = p.detach().clone()
            self.note(p)

    def note(self, p: Tensor) -> None:
        """Notes a parameter's form, to which what is kept of it fits."""
        self.form[p] = (p.shape, p.dtype, p.device)

    def fits(self, p: Tensor) -> bool:
        """Whether a parameter has joined, and has the form that it had then."""
        return self.form.get(p) == (p.shape, p.dtype, p.device)

    def drop(self, p: Tensor) -> None:
        """Keeps nothing more of a parameter; if it takes part again, it joins with Δ = 0."""
        self.places = None
        for kept in self._tables():
            kept.pop(p, None)

    def move(self, old: Tensor, new: Tensor) -> None:
        """Hands what is kept of one tensor over to another."""
        for kept in self._tables():
            if old in kept:
                kept[new] = kept.pop(old)

    def _tables(self) -> tuple[dict[Tensor, Any], ...]:
        return (self.delta, self.ref, self.placed, self.form, self.left)

    def keeps_ref(self, p: Tensor) -> bool:
        """Whether a parameter's x_ref is kept."""
        return self.layout != "delta" or p.dtype in _reference.LOW_PRECISION

    def recomputes_delta(self, p: Tensor) -> bool:
        """Whether a parameter's Δ is recomputed in each step, once S > 0."""
        return self.layout == "ref" and p.dtype not in _reference.LOW_PRECISION

    @torch.no_grad()
    def recall(self, p: Tensor) -> None:
        """Recomputes Δ = (x − x_ref)/S if it is not kept (Algorithm 1, line 8)."""
        if p not in self.delta:
            self.delta[p] = (p.detach() - self.ref[p]).div_(self.placed[p])

    def forget(self, p: Tensor) -> None:
        """Drops Δ if it can be recomputed."""
        if self.recomputes_delta(p) and self.placed[p] > 0.0:
            self.delta.pop(p, None)

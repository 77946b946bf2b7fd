"""What a mechanized optimizer remembers of its parameters between two steps.

    layout        kept of a parameter      x comes back as
    "delta"       Δ                        x_t + S·u + (S_{t+1} − S_t)·Δ_{t+1}
    "delta+ref"   Δ and x_ref              x_ref + S·Δ
    "ref"         x_ref                    x_ref + S·Δ, with Δ = (x − x_ref)/S made anew in each step (the paper's line 8)

Δ made anew has the rounding errors of x, magnified by 1/S, so "ref" is there for comparison only. While S is 0 there is nothing
to make it from: until then Δ is kept in that layout too.

With "delta", x_t is kept as well during a step; on the CPU the room for it stays.

A parameter in bfloat16 or float16 has Δ (in float32) and x_ref in every layout: together its master copy.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechanicd.torch import _reference


@dataclass
class Memory:
    """Of those parameters only that ever had a gradient.

    Attributes:
        layout: "delta", "delta+ref" or "ref".
        delta: Δ of each parameter that keeps it; float32 for low-precision parameters, else their dtype.
        ref: x_ref of each that keeps it.
        placed: the S at which each parameter was placed last, so that x_ref = x − placed·Δ whoever sat out a step.
    """

    layout: str = "delta"
    delta: dict[Tensor, Tensor] = field(default_factory=dict)
    ref: dict[Tensor, Tensor] = field(default_factory=dict)
    placed: dict[Tensor, float] = field(default_factory=dict)

    def join(self, p: Tensor, S: float) -> None:
        """Makes sure that a parameter has its Δ, which is 0 at first, and its x_ref if it keeps one."""
        if p not in self.placed:
            self.delta[p] = _reference.new_delta(p)
            self.placed[p] = S
            if self.keeps_ref(p):
                self.ref[p] = p.detach().clone()

    def move(self, old: Tensor, new: Tensor) -> None:
        """What is kept of a tensor is another's now."""
        tables: tuple[dict[Tensor, Any], ...] = (self.delta, self.ref, self.placed)
        for kept in tables:
            if old in kept:
                kept[new] = kept.pop(old)

    def keeps_ref(self, p: Tensor) -> bool:
        """Whether x_ref of a parameter is kept."""
        return self.layout != "delta" or p.dtype in _reference.LOW_PRECISION

    def makes_delta(self, p: Tensor) -> bool:
        """Whether Δ of a parameter is made anew in each step, as soon as there is an S."""
        return self.layout == "ref" and p.dtype not in _reference.LOW_PRECISION

    @torch.no_grad()
    def recall(self, p: Tensor) -> None:
        """Makes Δ = (x − x_ref)/S where it is not kept (Algorithm 1, line 8)."""
        if p not in self.delta:
            self.delta[p] = (p.detach() - self.ref[p]).div_(self.placed[p])

    def forget(self, p: Tensor) -> None:
        """Gives Δ up where it can be made again."""
        if self.makes_delta(p) and self.placed[p] > 0.0:
            self.delta.pop(p, None)
